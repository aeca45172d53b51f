"""Everything that computes: from an SAE artifact and text to a lake of Jacobian entries. Never imports prefect."""

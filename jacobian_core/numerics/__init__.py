"""The mathematics: codes, Jacobians, aggregates and interventions in closed form, and their definition by autograd."""

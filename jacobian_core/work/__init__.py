"""What a worker process does with a block: load once, compute, fill tables."""

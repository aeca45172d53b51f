"""What a request is: its identity, its cost, and requests made from others."""

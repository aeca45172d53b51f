"""From shards of text to blocks of tokens."""

"""What a node may use of its owner's machine, and when it takes no prompts of others."""

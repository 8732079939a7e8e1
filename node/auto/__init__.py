"""A node that chooses its models itself: measuring the machine, hearing what is asked for, moving."""

"""How a process is started with us in it, and what the command line of the base install can do."""

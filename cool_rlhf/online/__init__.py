"""Online rounds: what the policy learned to cheat is found and mended, and people's labels are gathered."""

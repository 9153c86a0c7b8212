"""The method without a cluster: maths in pure functions, the loop over collaborators that are handed in."""

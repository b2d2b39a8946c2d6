"""What a mask may cost: limits, costs of units, projection into them, the best mask within them."""

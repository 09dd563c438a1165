"""What the gateway costs, measured. Not a part of the package."""

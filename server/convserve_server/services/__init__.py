"""The RPCs of the contract."""

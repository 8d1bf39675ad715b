"""The messages of the contract and the values that they carry. No network."""

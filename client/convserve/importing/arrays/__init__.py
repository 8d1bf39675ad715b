"""What arrays by name are, and what their file leaves open of the layers that they make."""

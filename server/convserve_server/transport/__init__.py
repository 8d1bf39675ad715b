"""What every RPC passes through: authentication, limits, idle timeouts, errors to statuses."""

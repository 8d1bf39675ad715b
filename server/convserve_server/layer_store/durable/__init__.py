"""What makes stored layers durable: a folder, or a bucket that several servers share."""

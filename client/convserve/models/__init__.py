"""What surrounds the convolutions of a whole model, as far as it can become part of them."""

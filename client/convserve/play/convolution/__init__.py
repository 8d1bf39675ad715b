"""One convolution of the page: what its settings say, what they come to, and how it is explained and copied."""

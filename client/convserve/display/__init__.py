"""How values show themselves: pictures of feature maps, tables in notebooks, units."""

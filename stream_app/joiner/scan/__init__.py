"""Raw JSON read straight into columns, for the records that have nothing odd about them."""

"""Published files in, arrays out."""

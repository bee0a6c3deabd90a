"""Files of texts decoded: their lines, the rows that come out, the terminal."""

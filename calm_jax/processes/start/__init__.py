"""How a job starts as one of several processes: its flags, what is compared."""

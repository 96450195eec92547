"""Files as they are: structures of any format as `Frame`s, before labels are interpreted."""

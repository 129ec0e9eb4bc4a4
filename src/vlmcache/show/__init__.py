"""How values look to people and to scripts: what the views of several commands share."""

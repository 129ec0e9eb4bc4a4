"""How values look to people and to scripts; the only room that knows rich."""

"""Pictures and videos: files -> arrays -> the pixels of tiles. Knows no model."""

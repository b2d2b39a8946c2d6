"""Space of units, importance, search, mask. Knows neither tasks nor evaluation nor results."""

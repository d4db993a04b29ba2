"""What the charts of both reports are drawn with."""

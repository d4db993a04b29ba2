"""Jobs on Ray Data: they end, and what they leave is exact however often they are begun again."""

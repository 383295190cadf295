"""``vsfdatrd compare``: compare two videos of the same film side by side, as pictures, metrics and an HTML page.

cli ─► comparison ─► video ─► pick ─► match ─► pictures, metrics ─► page
"""

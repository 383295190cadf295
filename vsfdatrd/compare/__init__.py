"""``vsfdatrd compare``: two videos of the same film, beside each other, as pictures, numbers and a page.

command ─► comparison ─► video ─► pick ─► match ─► pictures, metrics ─► page
"""

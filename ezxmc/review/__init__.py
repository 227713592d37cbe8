"""Human review: which pairs are worth a person's minute, out as files, shown on a page, and back."""

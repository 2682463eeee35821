"""The authors' way of doing it, restated from public parts: what our speed is measured against."""

"""Every tiny family x every site x every edit, against the plain model, weight surgery and closed forms."""

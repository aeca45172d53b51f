"""Many runs as one request: layers x weights x pairs of one model, their record in the lake, their figures together."""

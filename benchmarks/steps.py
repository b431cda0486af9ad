"""How far a prediction goes in our server before `turning_back` sends it back, and on which way."""

HEADER = "X-Turn-Back"  # "WAY STEP"; no step: the whole of the way
DIRECT, LONG = WAYS = ("direct", "long")  # `lyra_site.direct`; Django's middleware and DRF's view

CONNECTED, ADMITTED = "connected", "admitted"
AUTHENTICATED, PERMITTED = "authenticated", "permitted"
PARSED, VALIDATED, COMPUTED = "parsed", "validated", "computed"
WHOLE = ""
# In the order of both ways; each does what the one before does, and then some.
STEPS = {
    CONNECTED: "gunicorn",
    ADMITTED: "+ admission, which reads the body",
    AUTHENTICATED: "+ a request of Django's on the long way; whose token it is",
    PERMITTED: "+ permission",
    PARSED: "+ JSON read",
    VALIDATED: "+ validation",
    COMPUTED: "+ who serves, engine, calibration",
    WHOLE: "+ tallies, JSON written, headers: the answer",
}

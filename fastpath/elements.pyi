"""Where the elements of a JSON array end, found without reading them."""

def skip_elements(text: str, at: int, count_max: int, chars_max: int) -> tuple[int, int, int]:
    """Pass over elements of an array from `at`, behind its `[` or a comma: (end, elements, next).

    Stops behind `count_max` elements, or the first one that ends `chars_max` characters on. `end` is where the last one
    ends, `next` where the one behind its comma begins: -1 when the array's `]` stands at `end`, -2 when the text ends
    before it. What lies between is only counted by its brackets and strings; whether it is JSON is for its reader.
    """

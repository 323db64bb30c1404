"""Random JSON schemas of the keywords that answers can be held to."""
import json


def random_value(random, depth=0):
    kinds = ["null", "bool", "int", "float", "text"] + (["list", "dict"] if depth < 2 else [])
    kind = random.choice(kinds)
    if kind == "null":
        return None
    if kind == "bool":
        return random.random() < 0.5
    if kind == "int":
        return random.randint(-200, 200)
    if kind == "float":
        return random.randint(-2000, 2000) / 8
    if kind == "text":
        return "".join(random.choice("ab \"\\\n\u00e9\U0001f642/") for _ in range(random.randint(0, 5)))
    if kind == "list":
        return [random_value(random, depth + 1) for _ in range(random.randint(0, 3))]
    return {f"k{i}": random_value(random, depth + 1) for i in range(random.randint(0, 3))}


def bounded(random, schema, low_key, high_key, low, high):
    a, b = sorted((random.randint(low, high), random.randint(low, high)))
    if random.random() < 0.6:
        schema[low_key] = a
    if random.random() < 0.6:
        schema[high_key] = b


def string_schema(random):
    schema = {"type": "string"}
    choice = random.randrange(4)
    if choice == 0:
        schema["pattern"] = random.choice(["^[a-f]{2,5}$", "^(yes|no)$", "\\d\\d", "^[^\"a-z]+$", "^\\w+@\\w+\\.(org|net)$", "x?y+"])
        schema["maxLength"] = 20
    elif choice == 1:
        schema["format"] = random.choice(["date", "time", "date-time", "uuid", "ipv4"])
    else:
        bounded(random, schema, "minLength", "maxLength", 0, 8)
        schema.setdefault("maxLength", 12)
    return schema


def object_schema(random, depth):
    names = random.sample(["name", "a", "ab", "größe", "x y", 'q"', "items"], random.randint(1, 4))
    schema = {"type": "object", "properties": {name: random_schema(random, depth + 1) for name in names},
              "required": [name for name in names if random.random() < 0.6]}
    choice = random.randrange(4)
    if choice == 0:
        schema["additionalProperties"] = False
    elif choice == 1:
        schema["additionalProperties"] = {"type": "integer"}
    return schema


def random_schema(random, depth=0):
    kinds = ["string", "integer", "number", "enum", "boolean", "null"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf", "allOf", "types", "oneOf"]
    kind = random.choice(kinds) if depth else "object"
    if kind == "string":
        return string_schema(random)
    if kind in ("integer", "number"):
        schema = {"type": kind}
        bounded(random, schema, random.choice(["minimum", "exclusiveMinimum"]), random.choice(["maximum", "exclusiveMaximum"]),
                -50, 50)
        if kind == "integer" and schema.get("exclusiveMinimum", -99) + 1 >= schema.get("exclusiveMaximum", 99):
            del schema["exclusiveMaximum"]
        return schema
    if kind == "enum":
        return {"enum": [random_value(random) for _ in range(random.randint(1, 4))]}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "object":
        return object_schema(random, depth)
    if kind == "array":
        schema = {"type": "array", "items": random_schema(random, depth + 1)}
        bounded(random, schema, "minItems", "maxItems", 0, 3)
        schema.setdefault("maxItems", 4)
        return schema
    if kind == "anyOf":
        return {"anyOf": [random_schema(random, depth + 1) for _ in range(2)]}
    if kind == "allOf":
        return {"allOf": [object_schema(random, depth + 1), {"type": "object", "required": ["extra"]},
                          {"properties": {"extra": random_schema(random, depth + 1)}}]}
    if kind == "types":
        return {"type": ["integer", "string", "null"], "maxLength": 5, "maximum": 1000, "minimum": 0}
    return {"oneOf": [{"type": "object", "properties": {"kind": {"const": name}, "v": random_schema(random, depth + 1)},
                       "required": ["kind", "v"], "additionalProperties": False} for name in ("p", "q")]}


def describe(schema):
    return json.dumps(schema, ensure_ascii=False)

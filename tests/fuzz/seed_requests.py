"""Seeds of what clients send."""
import json

from seed_bytes import seed


def make_json_schema():
    way = "\0" + "abcdefghijklmnopqrstuvwxyz0123456789"
    person = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 9},
                                               "age": {"type": "integer", "minimum": 0, "maximum": 130}},
              "required": ["name"], "additionalProperties": {"type": "number", "exclusiveMinimum": -0.5}}
    seed("json_schema", "person", json.dumps(person) + way)
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 2, "items":
                                                                             {"$ref": "#/$defs/t"}}]}}}
    seed("json_schema", "tree", json.dumps(tree) + way)
    seed("json_schema", "merge", json.dumps({"allOf": [{"properties": {"a": {"type": "integer"}}}, {
        "oneOf": [{"type": "object", "required": ["a"]}, {"type": "string", "pattern": "^(a|b)+\\d{2}$"}]}]}) + way)
    seed("json_schema", "enum", json.dumps({"enum": [1, "a\n", [None, {"k": 1.5}]], "type": ["array", "string"]}) + way)
    seed("json_schema", "tuple", json.dumps({"prefixItems": [{"const": 1}, {"format": "date"}], "items": False,
                                             "minItems": 2}) + way)


def make_api_request():
    seed("api_request", "completion", "\x00" + json.dumps(
        {"model": "m", "prompt": "Once", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["."],
         "stream": True, "stream_options": {"include_usage": True}, "logprobs": 2, "seed": 7}))
    seed("api_request", "parameters", "\x00" + json.dumps(
        {"prompt": ["a", [1, 2]], "n": 3, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
         "repetition_penalty": 1.1, "logit_bias": {"5": -100}, "stop_token_ids": [3], "min_tokens": 2, "max_tokens": 9,
         "echo": True, "priority": -1, "user": "u"}))
    seed("api_request", "json_schema", "\x01" + json.dumps(
        {"messages": [{"role": "user", "content": "a"}], "response_format": {
            "type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {
                "type": "object", "properties": {"a": {"enum": [1, "b"]}}}}}}))
    seed("api_request", "tokens", "\x00" + json.dumps({"prompt": [1, 2, 3]}))
    seed("api_request", "chat", "\x01" + json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "top_logprobs": 3,
         "logprobs": True}))
    seed("api_request", "tokenize", "\x02" + json.dumps({"prompt": "a b"}))
    seed("api_request", "detokenize", "\x03" + json.dumps({"tokens": [1, 2]}))


def make_http():
    def request(line, *fields, body="", key="k"):
        head = [line, *([f"Authorization: Bearer {key}"] if key else []), *fields]
        return "\r\n".join(head) + "\r\n\r\n" + body

    def posted(path, value, *fields, **more):
        body = json.dumps(value)
        return request(f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *fields, body=body, **more)

    def chunked(path, *chunks):
        body = "".join(f"{len(chunk):x};a=b\r\n{chunk}\r\n" for chunk in chunks) + "0\r\nT: v\r\n\r\n"
        return request(f"POST {path} HTTP/1.1", "Transfer-Encoding: chunked", "Expect: 100-continue", body=body)

    tokens = posted("/detokenize", {"tokens": [1, 2]})
    seed("http", "pipelined", "\2" + request("GET /health HTTP/1.1", key="") + tokens +
         request("HEAD /v1/models/a%2fb?c=%zz#d HTTP/1.1") + request("OPTIONS /tokenize HTTP/1.1"))
    seed("http", "completion", "\6" + posted("/v1/completions", {"prompt": "a", "max_tokens": 3, "stop": ["."]}))
    seed("http", "chunked", "\0" + chunked("/tokenize", '{"prompt"', ': "a b"}') + tokens)
    seed("http", "chat", "\7" + posted("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}) +
         request("GET /v1/kv/explain?request=cmpl-1 HTTP/1.0", "Connection: keep-alive"))
    seed("http", "refused", "\4" + posted("/tokenize", {"prompt": "a"}, key="other"))
    seed("http", "compressed", "\1" + posted("/tokenize", {}, "Content-Encoding: gzip"))
    seed("http", "two_lengths", "\3" + posted("/tokenize", {}, "Transfer-Encoding: chunked"))
    seed("http", "long_header", "\x3f" + request("GET /version HTTP/1.1", "X: " + "x" * 400))
    seed("http", "long_body", "\x3f" + request("POST /tokenize HTTP/1.1", "Content-Length: 18446744073709551615"))
    seed("http", "long_chunk", "\5" + request("POST /tokenize HTTP/1.1", "Transfer-Encoding: chunked",
                                              body="ffffffffffffffff\r\nx"))
    seed("http", "no_http", "\1\x16\x03\x01\r\n\r\n")


def make():
    make_json_schema()
    make_api_request()
    make_http()

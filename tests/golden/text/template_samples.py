"""Chat templates written for these tests in the manner of the model families that the engine serves, and snippets
that exercise one construct each."""

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
        "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "llama2": """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}
""",
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message goes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " + (tools | tojson(indent=4)) }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
{{- user_messages | length }}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate') }}
    {% endif %}
    {% if (message['role'] == 'assistant') %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
""",
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
""",
    "phi3.5": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}
{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "mistral-system": """{{- bos_token }}
{%- set ns = namespace(system="") %}
{%- for message in messages if message.role == "system" %}
    {%- set ns.system = ns.system ~ message.content ~ "\\n\\n" %}
{%- endfor %}
{%- for message in messages | rejectattr("role", "equalto", "system") %}
    {%- if message["role"] == "user" %}
        {{- "[INST]" ~ (" " ~ ns.system if loop.first and ns.system else " ") ~ message["content"] ~ "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {{- " " ~ message["content"].strip() ~ eos_token }}
    {%- else %}
        {{- raise_exception("Only user, system and assistant roles are supported, with the exception of " + message["role"]) }}
    {%- endif %}
{%- endfor %}
""",
    "phi3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + "
        "'<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"),
    "macros": """{%- macro header(role, mark='#') -%}
{{ mark }} {{ role | upper }}:
{%- endmacro -%}
{% for message in messages if message.role != 'system' %}
{{ header(message.role) }} {{ message.content }}{{ header('x', mark='-') if loop.last }}
{% else %}
nothing
{% endfor %}
{% generation %}{{ messages[-1].content }}{% endgeneration %}""",
}

CONVERSATIONS = [
    [("user", "Hello!")],
    [("system", " Be brief. "), ("user", "What is 2+2?")],
    [("user", "Hi"), ("assistant", " Hello, how can I help? "), ("user", "Tell me a <joke> & \"quote\" it.\n")],
    [("system", "Sie sind höflich."), ("user", "Grüße 🙂"), ("assistant", "<think>\nhm\n</think>\n\nHallo!"), ("user", "你好")],
    [("assistant", "I begin."), ("user", "No, I do.")],
    [("user", "a"), ("user", "b")],
    [("system", "only a system message")],
    [("user", "x"), ("assistant", "y")],
]

# Rendered with messages = CONVERSATIONS[3], bos_token '<s>', eos_token '</s>', add_generation_prompt true.
SNIPPETS = [
    # text and whitespace
    "plain", "", "a\n", "a\n\n", "\n{% if true %}\n  x\n{% endif %}\n", "  {% if true %}  x  {% endif %}  y", "a {#- c -#} b",
    "a\n  {# comment #}\n  b", "a\n  {{ 1 }}\n  b", "a  {{- 1 -}}  b", "a\n  {%- if true -%}\n  x\n  {%- endif -%}\n  b",
    "a\n  {%+ if true %}x{% endif %}\nb", "x{% if true +%}\ny{% endif %}", "\r\nq\r\n{% if 1 %}\r\nz{% endif %}\r\n", "{{ '}}' }}{{ '%}' }}",
    "a{% set x = 1 %}\n\n{{ x }}\n\n", "{% if true %} \n{% endif %}", "\t{% if true %}\n\tt\n\t{% endif %}\n", "{ { } } {%- if 1 %}a{% endif -%}",
    "{{ 1 }}\n{{ 2 }}\n", "a\n \u00a0{% if 1 %}b{% endif %}",
    # literals and printing
    "{{ 1 }} {{ -1 }} {{ 1.5 }} {{ 1e3 }} {{ 2.0 }} {{ 1_000 }}", "{{ true }} {{ False }} {{ none }} {{ None }}", "{{ 'a' \"b\" }}",
    "{{ 'it\\'s' }} {{ \"q\\\"q\" }} {{ 'a\\nb\\tc\\\\d' }} {{ '\\x41\\u00e9\\q' }}", "{{ [1, 'a', none, true, 2.5, [3]] }}", "{{ {'a': 1, 'b': [1, {'c': 'x'}]} }}",
    "{{ (1, 2)[1] }} {{ (1) }} {{ [] }} {{ {} }}", "{{ undefined_name }}|", "{{ {'a': {}} }}", "{{ ['it\\'s', '\"', 'both\\'\"', '\\n'] }}",
    # arithmetic and strings
    "{{ 1 + 2 * 3 - 4 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 6 / 2 }}", "{{ 1.5 * 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}",
    "{{ 'a' + 'b' ~ 1 ~ none ~ true ~ 1.0 }}", "{{ 'ab' * 3 }} {{ 2 * 'x' }} {{ 'x' * 0 }}", "{{ [1] + [2, 3] }}", "{{ - 2 + +3 }}", "{{ true + true }}",
    "{{ 1 + 'a' }}", "{{ undefined_name + 'a' }}", "{{ 'a' + none }}", "{{ 1 // 0 }}", "{{ 9223372036854775807 }}",
    # comparison and logic
    "{{ 1 == 1.0 }} {{ 'a' == 'a' }} {{ 1 == '1' }} {{ none == false }} {{ [1,2] == [1,2] }} {{ {'a': 1} == {'a': 1} }}", "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }}",
    "{{ not true }} {{ not none }} {{ not 'x' }} {{ not [] }}", "{{ 1 and 2 }} {{ 0 or 'x' }} {{ '' or none }} {{ 0 and 1 }}", "{{ 'a' in 'abc' }} {{ 'a' not in 'abc' }} {{ 1 in [1, 2] }} {{ 'role' in messages[0] }}",
    "{{ 'x' in undefined_name }}", "{{ 1 < 'a' }}", "{{ not 1 == 2 }}", "{{ true is true and false is false and 1 is not true }}", "{{ not a is defined and b is not defined }}", "{{ undefined_name == undefined_two }} {{ undefined_name == none }}",
    "{{ 'yes' if messages else 'no' }} {{ 'x' if false }}|", "{{ 'a' if false else 'b' if false else 'c' }}", "{{ 1 if 1 == 1 else 2 }}",
    # access
    "{{ messages[0].role }} {{ messages[0]['role'] }} {{ messages[-1].content }} {{ messages[1:3] | length }} {{ messages[99] }}|", "{{ messages[0].nothing }}|{{ messages[0].nothing is defined }}",
    "{{ messages[0].nothing.more }}", "{{ undefined_name.attr }}", "{{ undefined_name['x'] }}", "{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[:2] }} {{ 'abcdef'[::2] }} {{ 'abc'[5:] }}|{{ 'abc'[-9:2] }}",
    "{{ 'häß'[1] }} {{ 'häß' | length }} {{ '🙂x'[0] }} {{ 'abc'[-1] }}", "{{ [1,2,3,4,5][4:1:-1] }} {{ [1,2,3][-5:] }} {{ [1,2,3][::-2] }} {{ [][0:1] }}", "{{ {'a': 1}['a'] }} {{ {'a': 1}.a }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1}.get('b') }}",
    "{{ [[1, 2], [3, 4]][1][0] }} {{ [1, 2].0 }}", "{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in {'x': 1, 'y': 2} %}{{ k }}{% endfor %} {{ {'x': 1}.keys() | list }} {{ {'x': 1}.values() | list }}",
    # filters
    "{{ '  a b ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ ' É ' | trim | lower }} {{ 'straße' | upper }}", "{{ 'hELLO wORLD' | capitalize }} {{ 'hello wORLD' | title }}", "{{ [1, 2, 3] | join(', ') }} {{ ['a'] | join }} {{ messages | join(',', attribute='role') }} {{ 'abc' | join('-') }}",
    "{{ x | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }} {{ x | d }}|", "{{ [3, 4] | first }} {{ [3, 4] | last }} {{ 'abc' | first }} {{ [] | first }}|{{ [] | last }}|",
    "{{ messages | tojson }}", "{{ {'a': [1, 2.5, none, true, 'é\"\\n\\x01/<'], 'b': {}, 'c': []} | tojson }}", "{{ {'a': [1, {'b': 2}], 'c': {}, 'd': []} | tojson(indent=2) }}", "{{ 'x' | tojson }} {{ 1.0 | tojson }}",
    "{{ '5' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ '2.5' | float }} {{ 1 | float }} {{ -3 | abs }}", "{{ 1 | string + 'a' }} {{ none | string }} {{ [1] | string }}", "{{ 'aXbXc' | replace('X', '-') }} {{ 'aXbXc' | replace('X', '-', 1) }}",
    "{{ messages | map(attribute='role') | list }} {{ ['a', 'b'] | map('upper') | join }}", "{{ [1, 2, 3, 4] | select('odd') | list }} {{ [1, 2, 3] | reject('equalto', 2) | list }} {{ [0, 1, ''] | select | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }} {{ messages | rejectattr('role', 'eq', 'user') | list | length }} {{ messages | selectattr('nope') | list }}", "{{ [1, 2, 3] | reverse | list }} {{ 'abc' | reverse }} {{ 'ab' | list }}",
    "{{ {'a': 1} | items | list | length }} {{ {'a': 1} | length }} {{ 'abc' | count }} {{ undefined_name | length }}", "{{ 5 | length }}", "{{ ' a ' | safe }}",
    "{{ 'a\\nb\\n\\nc\\r\\nd' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent('> ', blank=true) }}|{{ 'a\\n' | indent }}|{{ '' | indent(3, first=true) }}|{{ '\\n' | indent }}|", "{{ 'x\\ny' | indent(width=-1) }}",
    "{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) }} {{ ['b', 'A', 'a', 'B'] | sort }} {{ ['b', 'A', 'a', 'B'] | sort(case_sensitive=true) }} {{ ['b', 'A', 'a', 'B'] | sort(true) }} {{ 'cab' | sort }}", "{{ messages | sort(attribute='content') | map(attribute='role') | list }} {{ [{'a': {'b': 2}}, {'a': {'b': 1.5}}] | sort(attribute='a.b') }}", "{{ [1, 'a'] | sort }}", "{{ [{'a': 1}, {}] | sort(attribute='a') }}", "{{ 5 | sort }}",
    "{% for k, v in {'b': 1, 'A': 3, 'c': 2} | dictsort %}{{ k }}{{ v }} {% endfor %}{% for k, v in {'b': 1, 'A': 3, 'c': 2} | dictsort(true) %}{{ k }} {% endfor %}{% for k, v in {'b': 1, 'A': 3, 'c': 2} | dictsort(by='value', reverse=true) %}{{ k }} {% endfor %}", "{{ {'a': 1} | dictsort(by='x') }}", "{{ [1] | dictsort }}",
    "{{ [1, 2, 1, 1.0, 'a', 'A', true] | unique | list }} {{ ['a', 'A'] | unique(case_sensitive=true) | list }} {{ messages | unique(attribute='role') | map(attribute='role') | list }} {{ 'abA' | unique | join }}",
    "{{ 2.5 | round }} {{ 3.5 | round }} {{ -0.5 | round }} {{ 42.55 | round(1) }} {{ 2.675 | round(2) }} {{ 5 | round }} {{ 1234.5 | round(-2) }} {{ 42.51 | round(1, 'ceil') }} {{ 42.59 | round(1, 'floor') }} {{ 42 | round(0, 'floor') }} {{ 1e20 | round }} {{ 7.5 | round | int }}", "{{ 1.5 | round(0, 'up') }}", "{{ 'a' | round }}", "{{ 1250 | round(-2) }} {{ 1350 | round(-2) }}",
    # tests
    "{{ 1 is integer }} {{ 1.0 is float }} {{ 1 is number }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ 'a' is sequence }} {{ 1 is iterable }} {{ [] is iterable }} {{ none is none }} {{ true is boolean }} {{ 1 is boolean }} {{ true is integer }} {{ true is number }}",
    "{{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 2 is in [1, 2] }} {{ 1 is eq 1 }} {{ 1 is ne 1 }} {{ 1 is lt 2 }} {{ 'a' is lower }} {{ 'A' is upper }} {{ messages is defined }} {{ nope is undefined }} {{ range is callable }}",
    # string methods
    "{{ ' a '.strip() }}|{{ 'xax'.lstrip('x') }}|{{ 'xax'.rstrip('x') }}|{{ '\\n\\na\\n'.strip('\\n') }}", "{{ 'a,b,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a b c'.split(maxsplit=1) }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'a'.upper() }} {{ 'A'.lower() }} {{ 'ab cd'.title() }} {{ 'aB'.capitalize() }}",
    "{{ 'abab'.replace('a', 'x') }} {{ 'abab'.replace('a', 'x', 1) }} {{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abab'.count('ab') }} {{ ','.join(['a', 'b']) }} {{ 'a\\nb\\r\\nc'.splitlines() }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }}", "{{ 'a'.nosuchmethod() }}",
    # statements
    "{% for i in range(5) %}{{ i }}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }};{% endfor %}", "{% for i in [] %}x{% else %}empty{% endfor %}", "{% for i in range(10) if i is odd %}{{ loop.index }}:{{ i }} {% endfor %}", "{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{% for i in [1, 2, 3] %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}", "{% for c in 'aé🙂' %}{{ c }}.{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for x in nope %}{% endfor %}ok",
    "{% set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(n=0, s='') %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }} {{ ns.s }} {{ ns.nope }}|", "{% if true %}{% set y = 3 %}{% endif %}{{ y }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set t = 1, 2 %}{{ t[1] }}", "{% set x %}block {{ 1 + 1 }}{% endset %}[{{ x }}]", "{% set d = {} %}{% set d.x = 1 %}",
    "{% if false %}a{% elif 1 == 1 %}b{% else %}c{% endif %}", "{% if messages %}{% if not tools %}{% if documents is none %}ok{% endif %}{% endif %}{% endif %}", "{% macro f(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(1, c=5) }} {{ f() }}|", "{% macro fact(n) %}{{ 1 if n <= 1 else n * (fact(n - 1) | int) }}{% endmacro %}{{ fact(5) }}", "{% set g = 5 %}{% macro f() %}{{ g }}{% endmacro %}{{ f() }}",
    "{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }}", "{{ dict(a=1, b='x') }}", "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", "{{ raise_exception('no') }}", "{{ messages | length > 3 and messages[0].role == 'system' }}", "{{ nope() }}", "{{ messages() }}", "{% generation %}a{{ 1 }}{% endgeneration %}b",
    "{{ 'a' if messages[0].content is string and messages[0].content | trim | length > 2 else 'b' }}", "{{ (messages | last).role }} {{ (messages[0].content ~ '!') | upper }}", "{%- set m = messages | selectattr('role', '==', 'user') | list -%}{{ m[-1].content }}", "{{ -3 | abs }} {{ 2 - 1 | abs }} {{ 'x' ~ 1 + 2 }}",
]

# Variables of chat_template_kwargs, and where the text ends.
OPTIONS = [
    ("qwen3", 1, {"enable_thinking": False}, False),
    ("qwen3", 1, {"enable_thinking": True}, False),
    ("llama3", 1, {"date_string": "1 Jan 2030", "custom_tools": [{"name": "f", "n": [1, 2.5, None, True]}]}, False),
    ("chatml", 0, {}, True),
    ("chatml", 1, {}, True),
    ("llama3", 0, {}, True),
    ("llama2", 1, {}, True),
    ("qwen3", 1, {}, True),
]
# Their conversations: the last message has white space at both ends, which some templates take away.
CONTINUED = [
    [["user", "Say it."], ["assistant", "  It is "]],
    [["user", "Say it is."], ["assistant", "It is"]],
]

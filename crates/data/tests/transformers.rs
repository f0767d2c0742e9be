//! Our tokenizers and templates against the real `transformers`, which reads what we save and renders what we render.
//!
//! `SHOESTRING_PYTHON=/path/to/python cargo test -p shoestring-data --test transformers -- --ignored`

use std::process::Command;

use data::{Conversation, Message, TrainOptions, encode_prompt, render_chat};

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA: &str = "{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined and false %}
        {%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}
        {%- set date_string = '26 Jul 2024' %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start|>system<|sep|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|sep|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|sep|>\\n\\n' }}
{%- endif %}
";

const QWEN: &str = "{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == \"assistant\" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}";

const LOOSE: &str = "
{% set pairs = [] %}
  {% for m in messages -%}
    {% set pairs = pairs + [m.role] %}
    [{{ loop.index }}/{{ messages | length }}] {{ m.role | upper }}: {{ m.content.strip() | replace('a', 'A') }}

  {% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ [1, {'a': 'é<'}] | tojson }} {{ '-' * 3 }}
{% if add_generation_prompt %}ASSISTANT:
{% endif %}
";

const CHECK: &str = r#"
import json, sys
from transformers import AutoTokenizer
folder, cases = sys.argv[1], json.load(open(sys.argv[2]))
t = AutoTokenizer.from_pretrained(folder)
bad = 0
def check(what, ours, theirs):
    global bad
    if ours != theirs:
        bad += 1
        print(what, "\n ours  ", repr(ours), "\n theirs", repr(theirs))
check("eos", cases["eos"], t.eos_token_id)
check("pad", cases["pad"], t.pad_token_id)
check("bos", cases["bos"], t.bos_token_id)
check("size", cases["size"], len(t))
for c in cases["texts"]:
    check("ids of " + repr(c["text"]), c["ids"], t.encode(c["text"], add_special_tokens=False))
    check("text of " + repr(c["text"]), c["decoded"], t.decode(c["ids"], skip_special_tokens=True))
for c in cases["chats"]:
    theirs = t.apply_chat_template(c["messages"], tokenize=False, add_generation_prompt=c["generate"])
    check("chat", c["rendered"], theirs)
    if c["ids"] is not None:
        check("chat ids", c["ids"], t.encode(theirs, add_special_tokens=False))
sys.exit(bad > 0)
"#;

/// Protects: a model folder made here works in `transformers`, to the id and to the character.
#[test]
#[ignore = "needs a Python with transformers, named by SHOESTRING_PYTHON"]
fn saved_tokenizers_and_templates_agree() {
    let python = std::env::var("SHOESTRING_PYTHON").unwrap_or("python3".into());
    let words = "Once upon a time, 12 + 30 = 42; über alles, 日本語. The answer (is) [42]\n  indented\n\n";
    for (name, template) in [
        ("default", data::DEFAULT_TEMPLATE),
        ("chatml", CHATML),
        ("llama", LLAMA),
        ("qwen", QWEN),
        ("loose", LOOSE),
    ] {
        let mut options = TrainOptions::reasoning(420);
        let more = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|sep|>", "<|eot|>", "<s>"];
        options.special_tokens.extend(more.map(str::to_owned));
        options.bos = Some("<s>".to_owned());
        options.chat_template = Some(template.to_owned());
        let tok = data::Tokenizer::train(std::iter::repeat_n(words.to_owned(), 5), &options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tok.save(dir.path()).unwrap();

        let texts: Vec<serde_json::Value> = [
            words,
            "",
            " ",
            "a  b   c\t\n\r\n d",
            "x<think>12</think> y<|end|>z <s>",
            "don't we'll 3.14 -7 1e9 ½ ٣",
            "\u{0}\u{7f}\u{a0}\u{200b}\u{feff}👩‍👩‍👧 é e\u{301}",
            "<|en<|end|>d|>",
        ]
        .iter()
        .map(|text| {
            let ids = tok.encode(text).unwrap();
            serde_json::json!({"text": text, "decoded": tok.decode(&ids, true).unwrap(), "ids": ids})
        })
        .collect();

        let (u, a) = (Message::user("  What is 2 + 2?\n"), Message::assistant("<think>\nhm\n</think>\n\n4"));
        let conversations = [
            vec![u.clone()],
            vec![Message::system("Be \"brief\".\n"), u.clone()],
            vec![u.clone(), a.clone()],
            vec![
                Message::system("é"),
                u.clone(),
                a.clone(),
                Message::user("And 3 + 3?"),
                a.clone(),
                u.clone(),
            ],
        ];
        let mut chats = Vec::new();
        for messages in &conversations {
            for generate in [false, true] {
                let rendered = render_chat(&tok, &Conversation::of(messages.as_slice()), generate).unwrap();
                let ids = generate.then(|| encode_prompt(&tok, messages).unwrap());
                chats.push(serde_json::json!(
                    {"messages": messages, "generate": generate, "rendered": rendered, "ids": ids}
                ));
            }
        }
        let cases = serde_json::json!({"eos": tok.eos_id(), "pad": tok.pad_id(), "bos": tok.bos_id(),
            "size": tok.vocab_size(), "texts": texts, "chats": chats});
        let path = dir.path().join("cases.json");
        std::fs::write(&path, cases.to_string()).unwrap();
        let output = Command::new(&python).arg("-c").arg(CHECK).arg(dir.path()).arg(&path).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}:\n{out}\n{err}");
    }
}

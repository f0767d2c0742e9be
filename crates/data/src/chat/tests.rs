use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::tokenizer::TrainOptions;

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' + '\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// As some published templates do, reasoning of earlier turns is dropped.
const DROPS_THOUGHTS: &str = "{% for m in messages %}{% set c = m.content %}\
    {% if m.role == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1] %}{% endif %}\
    {{ '<|' + m.role + '|>' + c + '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

fn with_template(template: &str) -> Tokenizer {
    let mut o = TrainOptions::reasoning(330);
    o.special_tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    o.chat_template = Some(template.to_owned());
    let text = "What is 2 + 2? user assistant system the answer is 4. ".repeat(4);
    Tokenizer::train(std::iter::repeat_n(text, 2), &o).unwrap()
}

fn encode(tok: &Tokenizer, messages: &[Message]) -> Result<Sample> {
    encode_chat(tok, &Conversation::of(messages))
}

/// A conversation of nothing but turns as text.
fn rendered(tok: &Tokenizer, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
    render_chat(tok, &Conversation::of(messages), add_generation_prompt)
}

fn default() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| with_template(DEFAULT_TEMPLATE))
}

fn learned(tok: &Tokenizer, sample: &Sample) -> String {
    let ids: Vec<u32> = sample.ids.iter().zip(&sample.loss).filter(|(_, l)| **l).map(|(id, _)| *id).collect();
    tok.decode(&ids, false).unwrap()
}

/// Protects: the wire form of the default template.
#[test]
fn default_template_renders() {
    let messages = [Message::system("S"), Message::user("U\n"), Message::assistant("A")];
    let text = rendered(default(), &messages, true).unwrap();
    assert_eq!(text, "<|system|>S<|end|><|user|>U\n<|end|><|assistant|>A<|end|><|assistant|>");
    let ids = encode_prompt(default(), &messages[..2]).unwrap();
    assert_eq!(ids, default().encode("<|system|>S<|end|><|user|>U\n<|end|><|assistant|>").unwrap());
}

/// Protects: the loss covers each assistant turn with its end token and nothing else.
#[test]
fn loss_mask_is_exact() {
    let messages = [
        Message::system("Be brief."),
        Message::user("2 + 2?"),
        Message::assistant("<think>two and two</think>4"),
        Message::user("Sure?"),
        Message::assistant("Yes."),
    ];
    let tok = default();
    let sample = encode(tok, &messages).unwrap();
    assert_eq!(sample.ids.len(), sample.loss.len());
    assert_eq!(learned(tok, &sample), "<think>two and two</think>4<|end|>Yes.<|end|>");
    assert_eq!(tok.decode(&sample.ids, false).unwrap(), rendered(tok, &messages, false).unwrap());
    let think = tok.token_id("<think>").unwrap();
    assert_eq!(sample.ids.iter().filter(|&&id| id == think).count(), 1);
    // What is trained is what is generated: both prompts are beginnings of the sample.
    for turn in [2, 4] {
        let prompt = encode_prompt(tok, &messages[..turn]).unwrap();
        assert!(sample.ids.starts_with(&prompt));
        assert!(!sample.loss[prompt.len() - 1] && sample.loss[prompt.len()]);
    }

    let tok = with_template(CHATML);
    let sample = encode(&tok, &messages).unwrap();
    assert_eq!(learned(&tok, &sample), "<think>two and two</think>4<|im_end|>Yes.<|im_end|>");
    assert_eq!(tok.decode(&sample.ids, false).unwrap(), rendered(&tok, &messages, false).unwrap());
}

/// Protects: a template without control tokens still gives a mask: the whole turn.
#[test]
fn loss_mask_of_a_plain_template() {
    let tok = with_template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
    );
    let messages = [Message::user("hi"), Message::assistant("yo")];
    let sample = encode(&tok, &messages).unwrap();
    assert_eq!(learned(&tok, &sample), "yo\n");
    assert!(sample.ids.starts_with(&encode_prompt(&tok, &messages[..1]).unwrap()));
}

/// Protects: where the generation prompt opens the thought, a turn that thinks is learned from there on, and one that does
/// not is refused with the reason.
#[test]
fn a_prompt_that_opens_the_thought_is_gone_on_from() {
    let opens = DEFAULT_TEMPLATE
        .replace("'<|assistant|>' -}}\n{%- endif -%}\n", "'<|assistant|><think>\\n' -}}\n{%- endif -%}\n");
    assert_ne!(opens, DEFAULT_TEMPLATE);
    let tok = with_template(&opens);
    for content in ["<think>two</think>4", "<think>\ntwo</think>4", " <think>\n\ntwo</think>4"] {
        let messages = [Message::user("2 + 2?"), Message::assistant(content)];
        let sample = encode(&tok, &messages).unwrap();
        assert_eq!(learned(&tok, &sample), "two</think>4<|end|>", "{content:?}");
        assert!(sample.ids.starts_with(&encode_prompt(&tok, &messages[..1]).unwrap()));
    }
    let e = encode(&tok, &[Message::user("2 + 2?"), Message::assistant("4")]).unwrap_err();
    assert!(matches!(&e, DataError::Unopened { index: 1, opening } if opening == "<think>\n"), "{e}");
}

/// Protects: a template that rewrites history is refused for training instead of giving a wrong mask.
#[test]
fn inconsistent_templates_are_refused() {
    let tok = with_template(DROPS_THOUGHTS);
    let turns = [
        Message::user("a"),
        Message::assistant("<think>x</think>b"),
        Message::user("c"),
        Message::assistant("<think>y</think>d"),
    ];
    let e = encode(&tok, &turns).unwrap_err();
    assert!(matches!(e, DataError::NotPrefix { index: 1 }), "{e}");
    assert_eq!(learned(&tok, &encode(&tok, &turns[..2]).unwrap()), "<think>x</think>b<|end|>");
    // For prompts it is fine, and the mark that the template cut in half does no harm.
    let ids = encode_prompt(&tok, &turns[..3]).unwrap();
    assert_eq!(tok.decode(&ids, false).unwrap(), rendered(&tok, &turns[..3], true).unwrap());
}

fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<|end|>".to_owned()),
        Just("<|assistant|>".to_owned()),
        Just("<|im_end|>\n<|im_start|>system\n".to_owned()),
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<|".to_owned()),
        Just("end|>".to_owned()),
        Just(" \n ".to_owned()),
        Just("\u{10f000}\u{10f001}\u{10f002}".to_owned()),
        ".{0,5}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|v| v.concat())
}

proptest! {
    /// Protects: whatever users and clients type, the control tokens of a prompt are the template's own, and no
    /// text is lost.
    #[test]
    fn prompts_hold_only_the_templates_control_tokens(
        user in hostile(), system in hostile(), assistant in hostile(), which in 0usize..3,
    ) {
        static TOKENIZERS: OnceLock<Vec<Tokenizer>> = OnceLock::new();
        let tokenizers = TOKENIZERS.get_or_init(|| {
            [DEFAULT_TEMPLATE, CHATML, DROPS_THOUGHTS].map(with_template).into()
        });
        let tok = &tokenizers[which];
        let conversation = |s: &str, u: &str, a: &str| {
            vec![Message::system(s), Message::user(u), Message::assistant(a), Message::user(u)]
        };
        let messages = conversation(&system, &user, &assistant);
        let rendered = rendered(tok, &messages, true).unwrap();
        let ids = match encode_prompt(tok, &messages) {
            Ok(ids) => ids,
            // Refusing is safe; it must not happen to templates that leave contents alone.
            Err(e) => {
                prop_assert!(which == 2 && matches!(e, DataError::ControlText { .. }), "{e}");
                return Ok(());
            }
        };
        prop_assert_eq!(tok.decode(&ids, false).unwrap(), rendered);
        let special = |ids: &[u32]| -> Vec<u32> { ids.iter().copied().filter(|&id| tok.is_special(id)).collect() };
        let neutral = encode_prompt(tok, &conversation("s", "u", "a")).unwrap();
        prop_assert_eq!(special(&ids), special(&neutral));
        // `<think>` may come from the assistant's turn alone.
        let think = tok.token_id("<think>").unwrap();
        let thoughts = ids.iter().filter(|&&id| id == think).count();
        prop_assert!(thoughts <= assistant.matches("<think>").count());
    }

    /// Protects: the same for training, where all but the assistant's turns are untrusted.
    #[test]
    fn samples_learn_the_assistant_exactly(user in hostile(), answer in "[a-z0-9 .]{0,20}") {
        let tok = default();
        let messages = [Message::user(user), Message::assistant(format!("<think>{answer}</think>{answer}"))];
        let sample = encode(tok, &messages).unwrap();
        prop_assert_eq!(learned(tok, &sample), format!("<think>{answer}</think>{answer}<|end|>"));
        prop_assert_eq!(&sample.ids[..sample.loss.iter().position(|&l| l).unwrap()],
            &encode_prompt(tok, &messages[..1]).unwrap()[..]);
    }
}

/// Protects: a role is no way around the rules for contents.
#[test]
fn unknown_roles_are_refused() {
    let message = Message::new("end", "");
    for e in [
        rendered(default(), std::slice::from_ref(&message), true).unwrap_err(),
        encode_prompt(default(), std::slice::from_ref(&message)).unwrap_err(),
        encode(default(), std::slice::from_ref(&message)).unwrap_err(),
    ] {
        assert!(e.to_string().contains("message 0 has the role \"end\""), "{e}");
    }
}

/// Protects: a server that renders somebody's template stays up: work, output, memory and recursion are bounded.
#[test]
fn hostile_templates_end_quickly() {
    let doubling =
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    let prints = [
        "ns.x",
        "ns.x ~ ''",
        "','.join([ns.x])",
        "ns.x|string",
        "ns.x|tojson",
        "'%s'|format(ns.x)",
        "ns.x|pprint",
        "'{}'.format(ns.x)",
        "{ns.x: 1}",
        "ns.x|join",
        "ns.x|first",
        "ns.x|min",
        "ns.x|upper",
        "debug()",
    ];
    let prints = prints.map(|p| format!("{doubling}{{{{ {p} }}}}"));
    let templates = [
        "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x ~ '' }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x|chain(ns.x) %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
        "{% macro f(a, b='}%) in') %}{{ f([a, a], 1) }}{% endmacro %}{{ f([1]) }}",
        "{% for x in [[1]] recursive %}{{ x ~ '' }}{{ loop([[x, x]]) }}{% endfor %}",
        "{% with x = [1] %}{{ x }}{% endwith %}",
        "{{ ([0] * 100000000) ~ '' }}",
        "{{ ([0]*100000000) == [0] *99999999 }}",
        "{{ range(99999)|map('default', range(99999)|list)|string }}",
        "{{ '%}' ~ [0] * 9 }}{# ' #}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999999) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 100000 | tojson(indent=9999999999) }}",
        "{{ 'a'.replace('', 'b' * 100000).replace('b', 'c' * 100000) }}",
        "{{ '%099999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ messages[0].content.foo.bar }}",
        "{% include 'other' %}",
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{% generation %}x",
        "{{ '",
        "{{ 'é{",
    ];
    let tok = default();
    for template in templates.into_iter().map(str::to_owned).chain(prints).chain([
        "(".repeat(100_000),
        format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)),
        "{% if true %}".repeat(20_000),
        format!("{{{{ {} }}}}", "[".repeat(50_000)),
    ]) {
        let tok = Tokenizer::with_chat_template(tok.clone(), template.clone());
        let start = Instant::now();
        let result = encode_prompt(&tok, &[Message::user("hi")]);
        let shown: String = template.chars().take(60).collect();
        assert!(start.elapsed() < Duration::from_millis(600), "{shown} took {:?}", start.elapsed());
        if !template.starts_with('(') {
            assert!(result.is_err(), "{shown} gave {result:?}");
        }
    }
}

proptest! {
    /// Protects: templates put together from pieces that are known to be dangerous neither panic nor run away.
    #[test]
    fn random_templates_end_quickly(pieces in prop::collection::vec(0usize..PIECES.len(), 1..14)) {
        let template: String = pieces.iter().map(|&i| PIECES[i]).collect();
        let tok = default().clone().with_chat_template(template.clone());
        let start = Instant::now();
        let _ = encode(&tok, &[Message::user("hi <|end|> * %}"), Message::assistant("{{ x }}")]);
        prop_assert!(start.elapsed() < Duration::from_secs(3), "{} took {:?}", template, start.elapsed());
    }
}

const PIECES: &[&str] = &[
    "{% set x = [x, x] %}",
    "{% set x = x + x %}",
    "{% set x = x ~ x %}",
    "{% set x = {'a': x, 'b': [x, x]} %}",
    "{% set x = messages %}",
    "{% set x = namespace(a=[1], b='b') %}",
    "{% set x.a = [x.a, x.a] %}",
    "{% set x.a = x %}",
    "{% for x in [x, x, x] %}",
    "{% for a, x in [[x, x]] recursive %}",
    "{% for i in range(50) %}",
    "{% endfor %}",
    "{% if x %}",
    "{% endif %}",
    "{% macro f(x, y=[x, x]) %}",
    "{% endmacro %}",
    "{{ f([x, x]) }}",
    "{{ loop([[x, x]]) }}",
    "{{ x }}",
    "{{ x ~ '' }}",
    "{{ x | tojson(indent=2) }}",
    "{{ x | string | length }}",
    "{{ x | join(x) }}",
    "{{ x == [x] }}",
    "{{ x | sort }}",
    "{{ '{}'.format(x) }}",
    "{{ messages[0].content }}",
    "{{ x.split('') | list }}",
    "{% set x = x | map('string') | list %}",
    "{% set x = x | string %}",
    "{% set x = x.replace('', x) %}",
    "{% set x %}{{ x }}{{ x }}{% endset %}",
    "{# x #}",
    "{% raw %}",
    "{% endraw %}",
    "{{ '",
    "' }}",
    "{% ",
    " %}",
    "é",
    "{",
    "}",
    "{{ messages[1].content }}",
    "<|end|>",
    "{%- set x = x | list -%}",
    "{{ x | items | list }}",
    "{{ caller() }}",
];

/// Protects: what templates of published models use works as it does in Python.
#[test]
fn python_habits_of_templates() {
    let cases = [
        ("{{ messages[0]['content'].strip().upper() }}", "HI <B> É"),
        ("{{ messages[0].content.split('<')[0] | trim }}|", "hi|"),
        ("{{ messages | tojson }}", r#"[{"role": "user", "content": " hi <b> é"}]"#),
        ("{{ {'a': [], 'b': 1} | tojson(indent=2) }}", "{\n  \"a\": [],\n  \"b\": 1\n}"),
        ("{{ 'tools' if tools else 'none' }}{{ strftime_now is defined }}", "noneTrue"),
        ("{% generation %}\nx{%- endgeneration %}\ny", "xy"),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% set loop_messages = messages[1:] %}{{ loop_messages | length }}", "0"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", ""),
        ("{{ eos_token }}{{ bos_token }}", "<|end|>"),
        ("{{ '=' * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}{# it's * #}", "===68"),
        ("{%- set a, b = 'x=1', \"%}\" -%}\n {{ a + b }}", "x=1%}"),
        ("{% for k, v in {'in': 1}.items() -%}\n {{ k }}={{ v }}{% endfor %}", "in=1"),
        (
            "{% macro f(a, b='(,', c=[1, 2]) %}{{ a }}{{ b }}{{ c[1] }}{% endmacro %}{{ f(1) }}{{ f(1, c='xyz') }}",
            "1(,21(,y",
        ),
        ("{% raw %}{% set a = {{ b * c }}{% endraw %}", "{% set a = {{ b * c }}"),
        (
            "{% set ns = namespace(list=[]) %}{% for i in range(40) %}{% set ns.list = ns.list + [i] %}{% endfor %}{{ ns.list|length }}",
            "40",
        ),
        ("{{ messages | map(attribute='role') | join(',') }}{{ ['a'] | map('upper') | list }}", "user['A']"),
        ("{% set x %}\nblock{% endset %}{{ x }}", "block"),
        ("{{ (messages | selectattr('role', 'equalto', 'user') | list) | length }}", "1"),
        ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
        ("{{ 'a' if 'tool_calls' in messages[0] else 'b' }}", "b"),
    ];
    for (template, expected) in cases {
        let tok = Tokenizer::with_chat_template(default().clone(), template.to_owned());
        let text = rendered(&tok, &[Message::user(" hi <b> é")], false);
        assert_eq!(text.as_deref().map_err(|e| e.to_string()), Ok(expected), "{template}");
    }
}

/// Protects: the reason that a template gives reaches the person.
#[test]
fn raise_exception_speaks() {
    let e = rendered(default(), &[Message::new("tool", "x")], true).unwrap_err();
    assert!(e.to_string().contains("knows the roles system, user and assistant, not tool"), "{e}");
}

/// A template that shows every field of a message, and the tools.
const FIELDS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% if enable_thinking is defined %}!{% endif %}\
    {% for m in messages %}{{ '<|' + m.role + '|>' }}\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% if m.name %}({{ m.name }}){% endif %}\
    {% if m.content is none %}-{% else %}{{ m.content }}{% endif %}\
    {% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

fn conversation(json: &str) -> Conversation {
    serde_json::from_str(json).unwrap()
}

/// Protects: whatever stands in chat data reaches the template, in its order, and a turn of weight 0 is not learned.
#[test]
fn fields_of_messages_reach_template_and_loss() {
    let tok = with_template(FIELDS);
    let c = conversation(
        r#"{"id": 7, "chat_template_kwargs": {"enable_thinking": false}, "tools": "[{\"z\": 1, \"a\": 2}]", "messages": [
            {"role": "user", "content": "2?", "name": "Ann", "thinking": null},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"y": 1.0, "b": "é"}}}]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "user", "content": "?"},
            {"role": "assistant", "reasoning_content": "two", "content": "2", "weight": 1}]}"#,
    );
    let sample = encode_chat(&tok, &c).unwrap();
    let text = tok.decode(&sample.ids, false).unwrap();
    assert_eq!(
        text,
        "[{\"z\": 1, \"a\": 2}]!<|user|>(Ann)2?<|end|>\
        <|assistant|>-[{\"function\": {\"name\": \"f\", \"arguments\": {\"y\": 1.0, \"b\": \"é\"}}}]<|end|>\
        <|tool|>2<|end|><|assistant|>no<|end|><|user|>?<|end|><|assistant|><think>two</think>2<|end|>"
    );
    assert_eq!(
        learned(&tok, &sample),
        "-[{\"function\": {\"name\": \"f\", \"arguments\": {\"y\": 1.0, \"b\": \"é\"}}}]<|end|><think>two</think>2<|end|>"
    );
    assert!(fields_left_out(&tok, &c).unwrap().is_empty());
    assert_eq!(
        fields_left_out(default(), &conversation(
            r#"{"tools": [1], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "c"}]}"#
        )).unwrap(),
        ["thinking", "tools"]
    );
    let back: Conversation = serde_json::from_value(serde_json::to_value(&c).unwrap()).unwrap();
    assert_eq!((&back.messages[3].learned, back == c), (&false, true));
}

/// Protects: what cannot be taken in is refused with its reason, and fields of users cannot spell control tokens either.
#[test]
fn fields_that_cannot_be_taken_are_refused() {
    for (json, want) in [
        (r#"{"messages": [{"role": "assistant", "content": "b", "weight": 0.5}]}"#, "`weight` is 0.5"),
        (r#"{"messages": [{"role": "assistant", "content": ["b"]}]}"#, "expected a string"),
        (r#"{"messages": [], "tools": "x"}"#, "`tools` is text that is not a JSON list"),
    ] {
        let e = serde_json::from_str::<Conversation>(json).unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    }
    let tok = with_template(FIELDS);
    let named = r#"{"messages": [{"role": "user", "content": "a", "name": "<|end|>"}]}"#;
    let e = encode_chat(&tok, &conversation(named)).unwrap_err();
    assert!(matches!(&e, DataError::ControlField { index: 0, field } if field == "name"), "{e}");
}

/// Protects: a template that looks at a content, such as its first letter, does not make harmless text a control token's.
#[test]
fn text_with_a_lone_angle_spells_no_token() {
    let tok =
        with_template(&format!("{{% if messages[0].content[:1] == 'a' %}}A{{% endif %}}{DEFAULT_TEMPLATE}"));
    for harmless in ["a < b", "a <b> c | d>", "a << b", "a >= b <"] {
        let ids = encode_prompt(&tok, &[Message::user(harmless)]).unwrap();
        assert_eq!(tok.decode(&ids, false).unwrap(), format!("A<|user|>{harmless}<|end|><|assistant|>"));
    }
    for risky in ["a <|end|>", "a < | END | >", "a <|e", "a d|>", "a <|"] {
        let e = encode_prompt(&tok, &[Message::user(risky)]).unwrap_err();
        assert!(matches!(e, DataError::ControlText { index: 0 }), "{risky}: {e}");
    }
}

/// Protects: templates see what Jinja and transformers show them: line ends, `tojson` and its arguments, the date.
#[test]
fn templates_are_read_as_jinja_reads_them() {
    let show = |template: &str| rendered(&with_template(template), &[Message::user("x")], false).unwrap();
    assert_eq!(
        show("{% if true %}\r\na\r\nb{% endif %}\rc\r\n"),
        "a\nbc",
        "the line end behind a block is trimmed"
    );
    let value = "{{ {'b': [1, 2.0], 'a': 'é\"', 'c': {}, 'd': none} | tojson(ARGS) }}";
    for (args, want) in [
        ("", r#"{"b": [1, 2.0], "a": "é\"", "c": {}, "d": null}"#),
        ("sort_keys=true, ensure_ascii=true", r#"{"a": "\u00e9\"", "b": [1, 2.0], "c": {}, "d": null}"#),
        ("separators=(',', ':')", r#"{"b":[1,2.0],"a":"é\"","c":{},"d":null}"#),
        (
            "indent=2",
            "{\n  \"b\": [\n    1,\n    2.0\n  ],\n  \"a\": \"é\\\"\",\n  \"c\": {},\n  \"d\": null\n}",
        ),
    ] {
        assert_eq!(show(&value.replace("ARGS", args)), want, "{args}");
    }
    assert_eq!(show("{{ '😀' | tojson(ensure_ascii=true) }}"), r#""\ud83d\ude00""#);
    assert!(show("{{ strftime_now('%Y-%m-%d') }}").starts_with("20"));
    let iterable = "{{ none is iterable }} {{ tools is iterable }} {{ 'x' is iterable }} {{ [] is iterable }} {{ 1 is iterable }}";
    assert_eq!(show(iterable), "False False True True False");
    assert_eq!(show("{{ nothing | length }}{{ 'äb' | length }}{{ {'a': 1} | count }}"), "021");
    assert!(rendered(&with_template("{{ none | length }}"), &[Message::user("x")], false).is_err());
}

/// Protects: what the engine's compiler would go down too deeply, for which there is no error to catch, is refused before.
#[test]
fn deep_templates_are_refused() {
    for template in [
        format!("{{{{ a{} }}}}", ".b".repeat(60_000)),
        format!("{{{{ {} }}}}", vec!["a"; 30_000].join("+")),
        format!("{{{{ {}a }}}}", "not ".repeat(20_000)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(9_000)),
        "{% if a %}".repeat(9_000),
        format!("{{{{ a{} }}}}", "|trim".repeat(20_000)),
    ] {
        let e = rendered(&with_template(&template), &[Message::user("x")], true).unwrap_err();
        assert!(matches!(e, DataError::Template { .. }), "{e}");
    }
}

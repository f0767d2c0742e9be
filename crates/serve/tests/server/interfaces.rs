//! The other interfaces, and what goes beyond them, over plain HTTP.

use crate::common::{chat, post, start};
use serde_json::{Value, json};
use serve::Options;

const CHAT: &str = "/v1/chat/completions";

/// The named events of a stream.
fn named(body: &str) -> Vec<(String, Value)> {
    let events = body.split("\n\n").filter(|e| !e.is_empty() && !e.starts_with(':'));
    events
        .map(|e| {
            let (name, data) = e.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name").to_owned();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(data["type"], name);
            (name, data)
        })
        .collect()
}

/// Anthropic's stream adds up to the message that comes without one, and both are what OpenAI's interface gives.
#[test]
fn messages_are_the_same_answer() {
    let address = start(Options::default());
    let openai = post(address, CHAT, &chat(json!({"temperature": 0}))).json();
    let body = json!({"model": "a", "max_tokens": 24, "temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 1000},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]}]});
    let whole = post(address, "/v1/messages", &body).json();
    let text: String =
        whole["content"].as_array().expect("blocks").iter().filter_map(|b| b["text"].as_str()).collect();
    assert_eq!(text, openai["choices"][0]["message"]["content"].as_str().expect("a text"));
    assert_eq!(whole["usage"]["output_tokens"], openai["usage"]["completion_tokens"]);
    assert_eq!(whole["stop_reason"], "max_tokens");

    let mut streaming = body.clone();
    streaming["stream"] = true.into();
    let events = named(&post(address, "/v1/messages", &streaming).body);
    assert_eq!(events[0].0, "message_start");
    assert_eq!(events[events.len() - 1].0, "message_stop");
    let deltas = events.iter().filter_map(|(_, e)| e["delta"]["text"].as_str()).collect::<String>();
    assert_eq!(deltas, text);
    let opened = events.iter().filter(|(n, _)| n == "content_block_start").map(|(_, e)| e["index"].clone());
    let closed = events.iter().filter(|(n, _)| n == "content_block_stop").map(|(_, e)| e["index"].clone());
    assert_eq!(opened.collect::<Vec<_>>(), closed.collect::<Vec<_>>(), "every block that opens is closed");
    assert_eq!(events[events.len() - 2].1["delta"]["stop_reason"], "max_tokens");

    let counted =
        post(address, "/v1/messages/count_tokens", &json!({"model": "a", "messages": body["messages"]}))
            .json();
    assert_eq!(counted["input_tokens"], openai["usage"]["prompt_tokens"]);
    let wrong = post(address, "/v1/messages", &json!({"model": "a", "messages": []}));
    assert_eq!((wrong.status, &wrong.json()["type"]), (400, &json!("error")));
}

/// So does the stream of a response, whose events are numbered without a gap.
#[test]
fn responses_are_the_same_answer() {
    let address = start(Options::default());
    let openai = post(address, CHAT, &chat(json!({"temperature": 0}))).json();
    let body = json!({"model": "a", "max_output_tokens": 24, "temperature": 0, "input": "What is 3 + 4?"});
    let whole = post(address, "/v1/responses", &body).json();
    let said = |output: &Value| -> String {
        let items = output.as_array().expect("items").iter().filter(|i| i["type"] == "message");
        items.filter_map(|i| i["content"][0]["text"].as_str()).collect()
    };
    assert_eq!(said(&whole["output"]), openai["choices"][0]["message"]["content"].as_str().expect("a text"));
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let mut streaming = body.clone();
    streaming["stream"] = true.into();
    let events = named(&post(address, "/v1/responses", &streaming).body);
    for (number, (_, event)) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let (name, last) = events.last().expect("events");
    assert_eq!(name, "response.incomplete");
    assert_eq!(said(&last["response"]["output"]), said(&whole["output"]));
    let deltas = events.iter().filter(|(n, _)| n == "response.output_text.delta");
    assert_eq!(deltas.filter_map(|(_, e)| e["delta"].as_str()).collect::<String>(), said(&whole["output"]));
    for (more, param) in
        [(json!({"previous_response_id": "resp_1"}), "previous_response_id"), (json!({"input": 3}), "input")]
    {
        let mut wrong = body.clone();
        more.as_object().expect("an object").iter().for_each(|(k, v)| wrong[k] = v.clone());
        let refused = post(address, "/v1/responses", &wrong);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)));
    }
}

/// A vote answers once, says how far the samples agree, and abstains where that is too little.
#[test]
fn votes_say_how_far_they_agree() {
    let address = start(Options::default());
    // So sharp that all agree.
    let body = chat(json!({"votes": 4, "seed": 1, "temperature": 0, "logit_bias": {"256": 0}}));
    let value = post(address, CHAT, &body).json();
    let one = post(address, CHAT, &chat(json!({"temperature": 0}))).json();
    let votes = &value["choices"][0]["votes"];
    assert_eq!(votes["samples"], 4);
    // Cut off, as these are, they do not count; told to stop, they do.
    assert_eq!((&votes["answered"], &votes["abstained"]), (&json!(0), &json!(true)));
    assert!(value["choices"][0]["message"]["refusal"].is_string());
    let text = one["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    let stop: String = text.chars().skip(3).take(2).collect();
    let stopped =
        post(address, CHAT, &chat(json!({"votes": 4, "temperature": 0, "stop": stop, "min_agreement": 0.9})));
    let choice = stopped.json()["choices"][0].clone();
    assert_eq!((&choice["votes"]["agreement"], &choice["votes"]["abstained"]), (&json!(1.0), &json!(false)));
    assert!(text.starts_with(choice["message"]["content"].as_str().expect("a text")));
    let mut streaming = chat(json!({"votes": 4, "temperature": 0, "stop": stop, "stream": true}));
    streaming["stream_options"] = json!({"include_usage": true});
    let events = post(address, CHAT, &streaming).events();
    assert_eq!(events[0]["choices"][0]["delta"]["content"], choice["message"]["content"]);
    assert_eq!(events[1]["choices"][0]["finish_reason"], "stop");
}

/// What a model marks as its answer is told without tags, and beside the text; as it was written where that is asked for.
#[test]
fn marked_answers_are_told_without_tags() {
    let ask = |address, path, more: Value| {
        let token = |text: &str| {
            let told = post(address, "/tokenize", &json!({"model": "a", "prompt": text})).json();
            told["tokens"][0].to_string()
        };
        // Drawn from these three, as chance will have it.
        let biases = json!({token("7"): 100, token("<answer>"): 100, token("</answer>"): 100});
        let mut body = json!({"model": "a", "messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 60,
            "logit_bias": biases, "temperature": 2, "seed": 1});
        more.as_object().expect("an object").iter().for_each(|(k, v)| body[k] = v.clone());
        post(address, path, &body)
    };
    let address = start(Options::default());
    let whole = ask(address, CHAT, json!({})).json();
    let message = &whole["choices"][0]["message"];
    let (content, answer) = (message["content"].as_str().expect("a text"), message["answer"].as_str());
    assert!(content.len() > 9 && content.chars().all(|c| c == '7' || c == '\n'), "{content:?}");
    let answer = answer.expect("an answer");
    assert!(content.contains(answer), "{answer:?} in {content:?}");
    let events = ask(address, CHAT, json!({"stream": true})).events();
    let deltas = || events.iter().map(|e| &e["choices"][0]["delta"]);
    assert_eq!(deltas().filter_map(|d| d["content"].as_str()).collect::<String>(), content);
    assert_eq!(deltas().filter_map(|d| d["answer"].as_str()).next_back(), Some(answer));
    let tags = Options { reasoning: serve::ReasoningField::None, ..Options::default() };
    let written = ask(start(tags), CHAT, json!({})).json()["choices"][0]["message"].clone();
    let bare = written["content"].as_str().expect("a text").replace("<answer>", "").replace("</answer>", "");
    assert_eq!((bare, &written["answer"]), (content.replace('\n', ""), &Value::Null));
    let formed = ask(
        address,
        CHAT,
        json!({"response_format": {"type": "json_object"}, "max_tokens": 400, "logit_bias": {}}),
    )
    .json();
    assert_eq!(formed["choices"][0]["message"]["answer"], Value::Null, "what has a form has no marks");
}

/// What one interface has and another does not is refused there, by the name that was sent.
#[test]
fn what_would_be_ignored_is_refused() {
    let address = start(Options::default());
    let long = "word ".repeat(2 * crate::common::CONTEXT);
    let bodies = [
        (CHAT, chat(json!({}))),
        ("/v1/completions", json!({"model": "a", "prompt": "3 + 4", "max_tokens": 1})),
        ("/v1/responses", json!({"model": "a", "input": "3 + 4", "max_output_tokens": 1})),
        (
            "/v1/messages",
            json!({"model": "a", "messages": [{"role": "user", "content": "3"}], "max_tokens": 1}),
        ),
    ];
    for (path, field, value) in [
        (CHAT, "guided_json", json!({})),
        (CHAT, "min_tokens", json!(3)),
        (CHAT, "messages", json!([{"role": "user", "content": long}])),
        ("/v1/completions", "votes", json!(4)),
        ("/v1/completions", "response_format", json!({"type": "json_object"})),
        ("/v1/completions", "prompt", json!(long)),
        ("/v1/responses", "votes", json!(4)),
        ("/v1/responses", "logprobs", json!(true)),
        ("/v1/responses", "include", json!(["message.output_text.logprobs"])),
        ("/v1/responses", "input", json!(long)),
        ("/v1/responses", "n", json!(2)),
        ("/v1/messages", "n", json!(2)),
        ("/v1/messages", "votes", json!(4)),
        ("/v1/messages", "top_logprobs", json!(2)),
        ("/v1/messages", "output_config.effort", json!("some")),
        ("/v1/messages", "output_config.format.type", json!("xml")),
    ] {
        let mut body = bodies.iter().find(|(p, _)| *p == path).expect("a body").1.clone();
        match field.split('.').collect::<Vec<_>>()[..] {
            [one] => body[one] = value,
            [one, two] => body[one] = json!({two: value}),
            [one, two, three] => body[one] = json!({two: {three: value}}),
            _ => unreachable!("{field}"),
        }
        let refused = post(address, path, &body);
        assert_eq!(refused.status, 400, "{path} {field}: {}", refused.body);
        if path != "/v1/messages" {
            assert_eq!(refused.json()["error"]["param"], field, "{path}");
        } else {
            let message = refused.json()["error"]["message"].to_string();
            assert!(message.contains(field), "{path} {field}: {message}");
        }
    }
    for (path, body) in bodies {
        assert_eq!(post(address, path, &body).status, 200, "{path}");
    }
}

/// Anthropic's way to ask for JSON of a schema.
#[test]
fn messages_have_the_form_that_was_asked_for() {
    let address = start(Options::default());
    let value = post(address, "/v1/messages", &json!({"model": "a", "max_tokens": 900, "messages": [{"role": "user", "content": "3"}],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "boolean"}}}})).json();
    assert!(["true", "false"].map(|t| json!(t)).contains(&value["content"][0]["text"]), "{value}");
}

/// Thinking ends when its tokens are used up, and the answer begins.
#[test]
fn effort_bounds_thinking() {
    let address = start(Options::default());
    let close = post(address, "/tokenize", &json!({"model": "b", "prompt": "</think>"})).json()["tokens"][0]
        .to_string();
    // The template has opened the thought, which nothing but the bound ends: the model's own closing tag is forbidden.
    let ask = |effort: &str| {
        let more = json!({"model": "b", "max_completion_tokens": 200, "reasoning_effort": effort, "seed": 2, "ignore_eos": true,
            "logit_bias": {&close: -100}});
        post(address, CHAT, &chat(more)).json()
    };
    let thought = |value: &Value| {
        value["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("a count")
    };
    assert_eq!(thought(&ask("high")), 200);
    for (effort, least) in [("none", 0), ("minimal", 64)] {
        let value = ask(effort);
        assert!(
            (least..least + 10).contains(&thought(&value)),
            "{effort}: {} tokens of thinking",
            thought(&value)
        );
        assert!(value["choices"][0]["message"]["content"].as_str().is_some_and(|t| !t.is_empty()));
    }
    assert_eq!(ask("some")["error"]["param"], "reasoning_effort");
}

#[test]
fn tools_need_a_template_that_knows_them() {
    let address = start(Options::default());
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    let refused = post(address, CHAT, &chat(json!({"tools": tools}))).json();
    assert_eq!(refused["error"]["param"], "tools");
    let none = post(address, CHAT, &chat(json!({"tools": tools, "tool_choice": "none"})));
    assert_eq!(none.status, 200);
    for choice in [
        json!("required"),
        json!("often"),
        json!({"type": "function", "function": {"name": "subtract"}}),
        json!({"type": "function"}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}}),
    ] {
        let tools = if choice == "required" { json!([]) } else { tools.clone() };
        let refused = post(address, CHAT, &chat(json!({"tools": tools, "tool_choice": choice}))).json();
        let param = refused["error"]["param"].as_str().expect("a name");
        assert!(param.starts_with("tool_choice"), "{refused}");
    }
}

/// Whatever the model would rather write, the answer is JSON of the schema; thinking is free.
#[test]
fn answers_have_the_form_that_was_asked_for() {
    let address = start(Options::default());
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["sum", "sure", "steps"],
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"enum": ["yes", "no"]},
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "maxItems": 2}},
        "$defs": {"step": {"type": "boolean"}}});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}});
    for (model, effort) in [("a", "high"), ("b", "none"), ("b", "minimal")] {
        let body = chat(
            json!({"model": model, "n": 4, "seed": 5, "max_completion_tokens": 300, "response_format": format,
            "reasoning_effort": effort}),
        );
        let value = post(address, CHAT, &body).json();
        for choice in value["choices"].as_array().expect("choices") {
            let text = choice["message"]["content"].as_str().expect("a text");
            assert_eq!(choice["finish_reason"], "stop", "{value}");
            let said: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(said["sum"].as_u64().is_some_and(|n| n < 100), "{said}");
            assert!(["yes", "no"].contains(&said["sure"].as_str().expect("a text")), "{said}");
            let steps = said["steps"].as_array().expect("a list");
            assert!(steps.len() <= 2 && steps.iter().all(Value::is_boolean), "{said}");
            assert_eq!(said.as_object().expect("an object").len(), 3);
            assert!(effort != "minimal" || !choice["message"]["reasoning"].is_null(), "{choice}");
        }
    }
    let mut response = json!({"model": "b", "input": "x", "max_output_tokens": 300, "reasoning": {"effort": "none"},
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "boolean"}}}});
    let value = post(address, "/v1/responses", &response).json();
    let said: Vec<&str> = value["output"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|i| i["content"][0]["text"].as_str())
        .collect();
    assert!(["true", "false"].contains(said.last().expect("a text")), "{value}");
    response["text"]["format"]["schema"] = json!({"type": "nonsense"});
    assert_eq!(post(address, "/v1/responses", &response).json()["error"]["param"], "text.format");
    for wrong in [
        json!({"type": "yaml"}),
        json!({"type": "json_schema"}),
        json!({"type": "json_schema", "json_schema": {"name": "x"}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"type": "object", "unevaluatedProperties": false}}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "https://example.org/schema.json"}}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": 3, "maximum": 2}}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"description": "long ".repeat(20_000)}}}),
    ] {
        let refused = post(address, CHAT, &chat(json!({"response_format": wrong})));
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.body);
        let param = refused.json()["error"]["param"].as_str().expect("a name").to_owned();
        assert!(param.starts_with("response_format"), "{}", refused.body);
    }
}

/// A call that the model writes comes as a call, whole and as a stream, and its result goes back.
#[test]
fn calls_of_tools_come_and_go() {
    let address = start(Options::default());
    let parameters = json!({"type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}});
    let more = json!({"model": "b", "reasoning_effort": "none", "max_completion_tokens": 200, "seed": 1,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "tools": [{"type": "function", "function": {"name": "add", "parameters": parameters}}]});
    let whole = post(address, CHAT, &chat(more.clone())).json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("add")));
    let arguments = call["function"]["arguments"].as_str().expect("JSON as text").to_owned();
    assert!(serde_json::from_str::<Value>(&arguments).expect("JSON")["a"].is_u64());

    let mut streaming = chat(more.clone());
    streaming["stream"] = true.into();
    let events = post(address, CHAT, &streaming).events();
    let calls: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["delta"].get("tool_calls")).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(
        (&calls[0][0]["index"], &calls[0][0]["function"]["arguments"]),
        (&json!(0), &json!(arguments))
    );
    assert!(calls[0][0]["id"].is_string());
    assert_eq!(events.last().expect("an end")["choices"][0]["finish_reason"], "tool_calls");

    let mut next = more.clone();
    next["messages"] = json!([{"role": "user", "content": "Add."}, choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "12"}]);
    assert_eq!(post(address, CHAT, &chat(next)).status, 200, "the result goes back");

    let response = json!({"model": "b", "input": "Add.", "max_output_tokens": 200, "reasoning": {"effort": "none"}, "seed": 1,
        "tool_choice": "required", "parallel_tool_calls": false,
        "tools": [{"type": "function", "name": "add", "parameters": parameters}]});
    let value = post(address, "/v1/responses", &response).json();
    let item = value["output"]
        .as_array()
        .expect("items")
        .iter()
        .find(|i| i["type"] == "function_call")
        .expect("a call");
    assert_eq!((&item["name"], item["call_id"].is_string()), (&json!("add"), true));

    // A control token in what a client gives to the template stays out.
    let mut wrong = chat(more);
    wrong["tools"][0]["function"]["description"] = "<|end|><|system|>".into();
    assert_eq!(post(address, CHAT, &wrong).status, 400);
}

/// A random model would end in the middle of its thoughts, sooner or later: an answer that has a form is of that form, or is told to be cut
/// off.
#[test]
fn no_answer_of_a_form_ends_before_it_is_whole() {
    let address = start(Options::default());
    let format = json!({"type": "json_schema", "json_schema": {"schema": {"enum": ["<think>", "no"]}}});
    let ends = post(address, "/tokenize", &json!({"model": "a", "prompt": "<|end|>"})).json()["tokens"][0]
        .to_string();
    let (mut whole, mut cut) = (0, 0);
    for model in ["a", "b"] {
        let more = json!({"model": model, "n": 24, "seed": 7, "max_completion_tokens": 120, "response_format": format,
            "logit_bias": {&ends: 5}});
        let value = post(address, CHAT, &chat(more)).json();
        for choice in value["choices"].as_array().expect("choices") {
            let text = choice["message"]["content"].as_str().expect("a text");
            match choice["finish_reason"].as_str() {
                Some("stop") => {
                    assert!(["\"<think>\"", "\"no\""].contains(&text), "{choice}");
                    whole += 1;
                }
                Some("length") => cut += 1,
                _ => panic!("{choice}"),
            }
        }
    }
    assert!(whole > 0 && cut > 0, "{whole} whole, {cut} cut off");
}

/// Tools that are offered, and one of them chosen, by all three interfaces and in the forms of several models.
#[test]
fn calls_can_be_forced_in_every_form() {
    let styles = [
        "<tool_call>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>",
        "parameters",
    ];
    for (seed, style) in (1..).zip(styles) {
        let mut served = crate::common::tiny("x", seed);
        let template = format!(
            "{{%- if tools -%}}{{{{- '<|system|>' + (tools | tojson) + '{style}<|end|>' -}}}}{{%- endif -%}}"
        );
        served.tokenizer = served.tokenizer.with_chat_template(template + data::DEFAULT_TEMPLATE);
        let address = crate::common::serve_models(vec![served], Options::default());
        let tool = |name: &str, key: &str| {
            json!({"type": "object", "additionalProperties": false, "required": [key],
            "properties": {key: {"enum": [name, "</tool_call>"]}}})
        };
        let tools = json!([{"type": "function", "function": {"name": "add", "parameters": tool("add", "x")}},
            {"type": "function", "function": {"name": "now", "parameters": tool("now", "y")}}]);
        let calls = |more: Value| {
            let mut body = chat(
                json!({"model": "x", "max_completion_tokens": 300, "seed": seed, "tools": tools, "reasoning_effort": "none"}),
            );
            more.as_object().expect("an object").iter().for_each(|(k, v)| body[k] = v.clone());
            let choice = post(address, CHAT, &body).json()["choices"][0].clone();
            assert!(
                ["tool_calls", "length"].contains(&choice["finish_reason"].as_str().expect("a reason")),
                "{style}: {choice}"
            );
            let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
            for call in &calls {
                let arguments: Value =
                    serde_json::from_str(call["function"]["arguments"].as_str().expect("a text"))
                        .expect("JSON");
                let key = if call["function"]["name"] == "add" { "x" } else { "y" };
                assert!(
                    [&call["function"]["name"], &json!("</tool_call>")].contains(&&arguments[key]),
                    "{call}"
                );
            }
            (choice["finish_reason"] == "tool_calls").then_some(calls)
        };
        let one = calls(json!({"tool_choice": "required", "parallel_tool_calls": false})).expect("a call");
        assert_eq!(one.len(), 1, "{style}");
        let named =
            calls(json!({"tool_choice": {"type": "function", "function": {"name": "now"}}})).expect("a call");
        assert_eq!((named.len(), &named[0]["function"]["name"]), (1, &json!("now")), "{style}");
        assert!(calls(json!({"tool_choice": "required"})).is_none_or(|calls| !calls.is_empty()), "{style}");
        let allowed =
            json!({"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]});
        let allowed = calls(
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}, "parallel_tool_calls": false}),
        );
        assert_eq!(allowed.expect("a call")[0]["function"]["name"], "add", "{style}");

        let message = json!({"model": "x", "max_tokens": 300, "messages": [{"role": "user", "content": "Now."}], "thinking": {"type": "disabled"},
            "tools": [{"name": "now", "input_schema": tool("now", "y")}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
        let value = post(address, "/v1/messages", &message).json();
        assert_eq!(
            (&value["stop_reason"], &value["content"][0]["name"]),
            (&json!("tool_use"), &json!("now")),
            "{value}"
        );
    }
}

//! Samples: what the model wrote, with its thinking dimmed.

use super::svg::escape;
use super::{Completion, Sample};

/// A problem with the answers of several stages side by side.
pub(super) fn card(sample: &Sample) -> String {
    let answers: String = sample.completions.iter().map(completion).collect();
    format!(
        r#"<article class="sample"><header><span class="tag">{}</span><p class="prompt">{}</p><p class="gold">right answer: <b>{}</b></p></header><div class="answers">{answers}</div></article>"#,
        escape(&sample.task),
        escape(&sample.prompt),
        escape(&sample.answer)
    )
}

fn completion(completion: &Completion) -> String {
    let (class, verdict) = match completion.score {
        score if score >= 1.0 => ("right", "right".to_owned()),
        score if score > 0.0 => ("partly", format!("partly right, {score:.2}")),
        _ => ("wrong", "wrong".to_owned()),
    };
    let reason = match completion.reason.as_str() {
        "" => String::new(),
        reason => format!(r#"<p class="reason">{}</p>"#, escape(reason)),
    };
    format!(
        r#"<div class="answer {class}"><h4>{}<span class="verdict">{verdict}</span></h4><div class="said">{}</div>{reason}</div>"#,
        escape(&completion.stage),
        said(&completion.text)
    )
}

/// A completion's text: thinking dimmed, the answer strong, tags faint, all else as it is.
pub(super) fn said(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.trim_end();
    let mut open: Vec<&str> = Vec::new();
    while let Some(at) = rest.find('<') {
        out.push_str(&escape(&rest[..at]));
        rest = &rest[at..];
        let tag =
            ["<think>", "</think>", "<answer>", "</answer>"].into_iter().find(|tag| rest.starts_with(tag));
        let Some(tag) = tag else {
            out.push_str("&lt;");
            rest = &rest[1..];
            continue;
        };
        let name = tag.trim_matches(['<', '/', '>']);
        let shown = format!("<i>{}</i>", escape(tag));
        if tag.starts_with("</") {
            out.push_str(&shown);
            // Only what is open can be closed, whatever the model writes.
            if open.last() == Some(&name) {
                open.pop();
                out.push_str("</span>");
            }
        } else {
            open.push(name);
            out.push_str(&format!(r#"<span class="{name}">{shown}"#));
        }
        rest = &rest[tag.len()..];
    }
    out.push_str(&escape(rest));
    out.push_str(&"</span>".repeat(open.len()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_and_answer_are_told_apart() {
        assert_eq!(
            said("<think>1 < 2</think><answer>3</answer>"),
            "<span class=\"think\"><i>&lt;think&gt;</i>1 &lt; 2<i>&lt;/think&gt;</i></span>\
             <span class=\"answer\"><i>&lt;answer&gt;</i>3<i>&lt;/answer&gt;</i></span>"
        );
    }

    /// A model may write anything, a script or a tag that breaks the page among it.
    #[test]
    fn hostile_text_stays_text() {
        for text in [
            "<script>alert(1)</script>",
            "</div></article><img src=x onerror=alert(1)>",
            "<think><think></answer></think>\" onmouseover=\"x",
            "</answer></think><answer><think",
            "<\u{202e}think>&lt;script&gt;\0",
        ] {
            let html = said(text);
            let plain = html
                .replace("<i>", "")
                .replace("</i>", "")
                .replace("<span class=\"think\">", "")
                .replace("<span class=\"answer\">", "")
                .replace("</span>", "");
            assert!(!plain.contains(['<', '>', '"', '\0', '\u{202e}']), "{html}");
            assert_eq!(html.matches("<span").count(), html.matches("</span").count(), "{html}");
        }
    }
}

//! The page: one file that needs nothing else, readable with scripts off, on a telephone and in the dark.

use std::fmt::Write;

use super::axis::{Unit, bytes, digits, duration, money, percent, price, short};
use super::bars::{Row, intervals, share_colour, shares};
use super::svg::{LineChart, escape};
use super::{RunReport, charts, sample};
use crate::claims::Claim;
use crate::evaluate::Scores;
use crate::forgetting::BUILT_IN;
use crate::ledger::StageCost;
use crate::run::metrics::{Line, keys};
use crate::stats::Estimate;

/// How a chart looks in a file of its own.
pub(super) const SVG_STYLE: &str = concat!("<style>", include_str!("plot.css"), "</style>");

/// The whole page.
pub(super) fn page(report: &RunReport, metrics: &[Line]) -> String {
    let mut body = String::new();
    header(report, &mut body);
    ways(report, &mut body);
    claims(&report.claims, &mut body);
    reinforcement(report, metrics, &mut body);
    measured(report, &mut body);
    forgotten(report, &mut body);
    curves(report, metrics, &mut body);
    samples(report, &mut body);
    ledger(report, &mut body);
    fine_print(report, metrics, &mut body);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} · Shoestring</title>\n\
         <style>\n{}{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<div id=\"tip\"></div>\n\
         <script>\n{}</script>\n</body>\n</html>\n",
        escape(&report.name),
        include_str!("page.css"),
        include_str!("plot.css"),
        include_str!("page.js"),
    )
}

/// What was trained, on what, in how long, at what price, and what its own checked answers bought.
fn headline(report: &RunReport) -> String {
    let total = report.total();
    let first = |text: &str| {
        let mut chars = text.chars();
        chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    };
    let model = if report.model.is_empty() { "a model".to_owned() } else { report.model.clone() };
    let task = if report.task.is_empty() { String::new() } else { format!(" {}", escape(&report.task)) };
    let learnt = format!(
        "{} learnt{task} in <em>{}</em> for <em>{}</em>",
        escape(&first(&model)),
        duration(total.seconds),
        price(total.cost)
    );
    match report.before_and_after() {
        Some((before, after)) => {
            let (from, to) = (before.pass_at_1.value, after.pass_at_1.value);
            let verb = if to >= from { "raised" } else { "lowered" };
            format!(
                "{learnt}; its own answers, checked, {verb} pass@1 from <em>{}</em> to <em>{}</em>.",
                percent(from),
                percent(to)
            )
        }
        None => format!("{learnt}."),
    }
}

fn header(report: &RunReport, out: &mut String) {
    let total = report.total();
    let _ = write!(
        out,
        "<p class=\"kicker\">Shoestring · {} · seed {}</p>\n<h1>{}</h1>\n<dl class=\"facts\">\n",
        escape(&report.name),
        report.seed,
        headline(report)
    );
    let mut fact = |name: &str, value: String, note: String| {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>");
    };
    if let Some((before, after)) = report.before_and_after() {
        let gain = (after.pass_at_1.value - before.pass_at_1.value) * 100.0;
        let sign = if gain < 0.0 { "−" } else { "+" };
        fact(
            "from its own answers",
            format!("{sign}{:.0} points", gain.abs()),
            "of pass@1, held-out problems".into(),
        );
    }
    fact("time", duration(total.seconds), format!("{} of core time", duration(total.cpu_seconds)));
    fact(
        "price",
        escape(&money(total.cost)),
        format!("at {} per core-hour", money(report.price_per_core_hour)),
    );
    fact("tokens", short(total.tokens as f64), "read and written".into());
    fact("FLOPs", short(total.operations as f64), "multiplications and additions".into());
    fact("peak memory", bytes(total.peak_memory_bytes), total.joules.map(energy).unwrap_or_default());
    out.push_str("</dl>\n");
}

fn energy(joules: f64) -> String {
    format!("{} kJ of energy", digits(joules / 1000.0, 3))
}

/// The width of charts on a phone, where a wider one would have to be shrunk beyond reading.
const NARROW: f64 = 340.0;

/// A chart of a width, and beside it the one that takes its place where there is no room for that.
fn figure(width: f64, chart: impl Fn(f64) -> String, title: &str, caption: &str, out: &mut String) {
    let chart = match width <= NARROW {
        true => chart(width),
        false => {
            format!("<div class=\"wide\">{}</div><div class=\"narrow\">{}</div>", chart(width), chart(NARROW))
        }
    };
    let caption =
        if caption.is_empty() { String::new() } else { format!("<figcaption>{caption}</figcaption>") };
    let title = if title.is_empty() { String::new() } else { format!("<h3>{}</h3>", escape(title)) };
    let _ = writeln!(out, "<figure>{title}{chart}{caption}</figure>");
}

fn draw(chart: &LineChart, caption: &str, out: &mut String) {
    let height = |width: f64| if width > NARROW { chart.height } else { chart.height.min(300.0) };
    let render = |width| LineChart { width, height: height(width), ..chart.clone() }.render("");
    figure(chart.width, render, &chart.title, caption, out);
}

/// Charts next to each other, as many in a row as stay readable.
fn draw_grid(charts: Vec<LineChart>, out: &mut String) {
    let width = charts::panel_width(charts.len());
    open_grid(charts.len(), out);
    for chart in charts {
        draw(&LineChart { width, ..chart }, "", out);
    }
    out.push_str("</div>\n");
}

fn open_grid(count: usize, out: &mut String) {
    let class = match count {
        1 => "one",
        2 | 4 => "two",
        _ => "three",
    };
    let _ = writeln!(out, "<div class=\"grid {class}\">");
}

/// What the same operations buy in different ways.
fn ways(report: &RunReport, out: &mut String) {
    let Some(chart) = charts::ways(report) else { return };
    out.push_str("<h2>What the FLOPs bought</h2>\n");
    draw(
        &chart,
        "Each dot is a measured model; its FLOPs are those of everything that it is built on. Lines join what lies on one way. \
         The claims below say which differences are more than chance.",
        out,
    );
}

fn reinforcement(report: &RunReport, metrics: &[Line], out: &mut String) {
    let stages = charts::reinforced(metrics);
    let Some(chart) = charts::reinforcement(report, metrics) else { return };
    out.push_str("<h2>Learning to reason</h2>\n<p class=\"lead\">The model answers problems, a verifier scores the answers, and what scored above its group becomes more likely. Nobody shows it a solution here.</p>\n");
    if let Some(taught) = &report.taught {
        let _ = writeln!(out, "<p class=\"lead\">{}</p>", escape(taught));
    }
    draw(&chart, "Bars on the marks are 95 % intervals over the held-out problems.", out);
    let panels = [
        (keys::COMPLETION_LENGTH, "How long it thinks".to_owned(), "tokens per answer"),
        (keys::ENTROPY, "How open it stays".to_owned(), "entropy, nats per token"),
        (keys::REWARD, "Reward of each reinforced model".to_owned(), "reward"),
    ];
    // The chart above shows the reward of one model already.
    let wanted = panels.into_iter().filter(|(key, ..)| *key != keys::REWARD || stages.len() > 1);
    let named = charts::named_rewards(metrics)
        .into_iter()
        .map(|(key, name)| (key, format!("Reward “{name}”"), "score, before its weight"));
    let drawn = wanted.chain(named).filter_map(|(key, title, label)| {
        charts::over_steps(metrics, &stages, key, &title, label, Unit::Plain)
    });
    draw_grid(drawn.collect(), out);
}

fn columns(evaluation: &Scores) -> Vec<(String, Estimate)> {
    let k = evaluation.samples;
    let mut columns = vec![("pass@1".to_owned(), evaluation.pass_at_1)];
    if k > 1 {
        columns.push((format!("maj@{k}"), evaluation.maj_at_k));
        columns.push((format!("pass@{k}"), evaluation.pass_at_k));
    }
    columns
}

fn measured(report: &RunReport, out: &mut String) {
    let Some((_, first)) = report.evaluation.first() else { return };
    let legend: Vec<String> = columns(first).into_iter().map(|(name, _)| name).collect();
    let rows = |pairs: &[(String, Scores)]| -> Vec<Row> {
        let row = |(name, evaluation): &(String, Scores)| Row {
            name: name.clone(),
            values: columns(evaluation).into_iter().map(|(_, value)| value).collect(),
        };
        pairs.iter().map(row).collect()
    };
    let _ = write!(
        out,
        "<h2>What each stage bought</h2>\n<p class=\"lead\">{} held-out problems that no stage trained on. pass@1 is one greedy answer; {}</p>\n",
        first.problems,
        match first.samples {
            0 | 1 => "bars are 95 % intervals.".to_owned(),
            k => format!(
                "maj@{k} is the most common of {k} sampled answers; pass@{k} asks whether any of them is right. Bars are 95 % intervals."
            ),
        }
    );
    figure(
        880.0,
        |width| intervals("Held-out problems solved, by stage", &legend, &rows(&report.evaluation), width),
        "",
        "",
        out,
    );
    if !report.evaluation_by_task.is_empty() {
        let count = report.evaluation_by_task.len();
        open_grid(count, out);
        for (task, pairs) in &report.evaluation_by_task {
            let width = charts::panel_width(count);
            let chart = |width| intervals(&format!("{task}, by stage"), &legend, &rows(pairs), width);
            figure(width, chart, &task.replace('_', " "), "", out);
        }
        out.push_str("</div>\n");
    }
    out.push_str("<details><summary>The same as a table</summary><div class=\"scroll\"><table><thead><tr><th>stage</th>");
    for name in &legend {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for (name, evaluation) in &report.evaluation {
        let _ = write!(out, "<tr><td>{}</td>", escape(name));
        for (_, value) in columns(evaluation) {
            let _ = write!(
                out,
                "<td>{}<small>{:.1}–{:.1}</small></td>",
                percent(value.value),
                value.low * 100.0,
                value.high * 100.0
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></details>\n");
}

/// What models make of a text that no stage trained on, against the first of them.
fn forgotten(report: &RunReport, out: &mut String) {
    let Some((first, start)) = report.held_text.first() else { return };
    let text = match start.text.as_str() {
        BUILT_IN => "the text that comes with the program".to_owned(),
        file => escape(file),
    };
    let _ = writeln!(
        out,
        "<h2>What was forgotten</h2>\n<p class=\"lead\">Bits per byte on {} bytes of {text}, on which no stage trained: higher \
         than at the start is forgotten.</p>\n<div class=\"scroll\"><table><thead><tr><th>model</th><th>bits per byte</th>\
         <th>against {}</th></tr></thead><tbody>",
        start.bytes,
        escape(first)
    );
    for (name, m) in &report.held_text {
        let change = 100.0 * (m.bits_per_byte / start.bits_per_byte - 1.0);
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{:.3}</td><td>{change:+.1} %</td></tr>",
            escape(name),
            m.bits_per_byte
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn curves(report: &RunReport, metrics: &[Line], out: &mut String) {
    let losses = charts::losses(metrics);
    let overlays: Vec<LineChart> =
        report.overlays.iter().filter_map(|overlay| charts::overlay(overlay, metrics)).collect();
    if losses.is_none() && overlays.is_empty() {
        return;
    }
    out.push_str("<h2>Learning from text</h2>\n<p class=\"lead\">Surprise at the next token, in nats: lower is better. Stages read different texts, so that only curves of the same kind compare.</p>\n");
    if let Some(chart) = losses {
        draw(&chart, "", out);
    }
    if !overlays.is_empty() {
        draw_grid(overlays, out);
    }
}

fn samples(report: &RunReport, out: &mut String) {
    if report.samples.is_empty() {
        return;
    }
    out.push_str("<h2>In its own words</h2>\n<p class=\"lead\">The same problems, answered by the stages side by side. Thinking is dimmed.</p>\n");
    for one in &report.samples {
        out.push_str(&sample::card(one));
        out.push('\n');
    }
}

fn ledger(report: &RunReport, out: &mut String) {
    if report.stages.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<h2>What it cost</h2>\n<p class=\"lead\">FLOPs are counted op by op; time{} are read from the system; money is wall time on all cores at {} per core-hour.</p>\n",
        if report.total().joules.is_some() { ", memory and energy" } else { " and memory" },
        money(report.price_per_core_hour)
    );
    let part = |stage: &StageCost| (stage.name.clone(), stage.seconds, duration(stage.seconds));
    let parts: Vec<_> = report.stages.iter().map(part).collect();
    figure(880.0, |width| shares("Time by stage", &parts, width), "Where the time went", "", out);
    out.push_str("<div class=\"scroll\"><table><thead><tr><th>stage</th><th>time</th><th>core time</th><th>tokens</th><th>tokens/s</th><th>FLOPs</th><th>FLOP/s</th><th>peak memory</th><th>energy</th><th>price</th></tr></thead><tbody>\n");
    for (index, stage) in report.stages.iter().enumerate() {
        let swatch = format!("<span class=\"swatch c{}\"></span>", share_colour(index));
        let _ = writeln!(out, "<tr>{}</tr>", cost_cells(&swatch, stage));
    }
    let _ =
        writeln!(out, "</tbody><tfoot><tr>{}</tr></tfoot></table></div>", cost_cells("", &report.total()));
}

fn cost_cells(swatch: &str, stage: &StageCost) -> String {
    let rate = |count: u64| {
        if count == 0 || stage.seconds <= 0.0 {
            "–".to_owned()
        } else {
            short(count as f64 / stage.seconds)
        }
    };
    let count = |count: u64| if count == 0 { "–".to_owned() } else { short(count as f64) };
    let joules = stage.joules.map_or("–".to_owned(), |joules| format!("{} kJ", digits(joules / 1000.0, 3)));
    let cells = [
        format!("{swatch}{}", escape(&stage.name)),
        duration(stage.seconds),
        duration(stage.cpu_seconds),
        count(stage.tokens),
        rate(stage.tokens),
        count(stage.operations),
        rate(stage.operations),
        bytes(stage.peak_memory_bytes),
        joules,
        escape(&money(stage.cost)),
    ];
    cells.map(|cell| format!("<td>{cell}</td>")).concat()
}

fn claims(claims: &[Claim], out: &mut String) {
    if claims.is_empty() {
        return;
    }
    out.push_str("<h2>What it shows</h2>\n<p class=\"lead\">Each claim is a ratio against its baseline in this same run. One whose 95 % interval reaches 1 is not shown, however good the ratio looks.</p>\n<ul class=\"claims\">\n");
    for claim in claims {
        let (class, state) = match claim {
            _ if claim.shown => ("shown", "✓ shown"),
            _ if claim.over_budget => ("open", "○ void: more FLOPs"),
            _ if claim.refuted() => ("refuted", "✗ refuted"),
            _ => ("open", "○ not shown"),
        };
        let _ = writeln!(
            out,
            "<li><span class=\"state {class}\">{state}</span><span>{}<small>{}: against {}{}</small></span><span class=\"ratio\">×{}<small>{} to {}</small></span></li>",
            escape(&claim.name),
            claim.figure,
            escape(&claim.baseline),
            claim.flops.zip(claim.baseline_flops).map_or_else(String::new, |(own, other)| {
                format!("; FLOPs {} against {}", short(own as f64), short(other as f64))
            }),
            digits(claim.ratio, 3),
            digits(claim.low, 3),
            if claim.high > 1e6 { "∞".to_owned() } else { digits(claim.high, 3) }
        );
    }
    out.push_str("</ul>\n");
}

fn fine_print(report: &RunReport, metrics: &[Line], out: &mut String) {
    let others = charts::others(metrics);
    if !others.is_empty() || !report.recipe.is_empty() {
        out.push_str("<h2>Everything else</h2>\n");
    }
    if !others.is_empty() {
        let _ = write!(out, "<details><summary>{} more curves</summary>", others.len());
        draw_grid(others, out);
        out.push_str("</details>\n");
    }
    if !report.recipe.is_empty() {
        let recipe = escape(&report.recipe);
        let _ = writeln!(
            out,
            "<details><summary>The recipe, with every default stated</summary><pre>{recipe}</pre></details>"
        );
    }
    let machine = match report.machine.as_str() {
        "" => String::new(),
        machine => format!(" Run on {}.", escape(machine)),
    };
    let _ = writeln!(
        out,
        "<footer>Made by Shoestring {}.{machine} The numbers of this page are in <code>report.json</code>, those of its curves in <code>metrics.jsonl</code>.</footer>",
        env!("CARGO_PKG_VERSION")
    );
}

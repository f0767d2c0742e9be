//! Rows of intervals, and a bar of shares, as SVG.

use std::fmt::Write;

use super::axis::{Axis, Unit, percent};
use super::svg::{escape, open};
use crate::stats::Estimate;

/// A row of an [interval chart](intervals): a name and the measured values.
pub(super) struct Row {
    pub name: String,
    /// In the order of the legend.
    pub values: Vec<Estimate>,
}

/// Shares with their intervals, one row each, on one axis from 0 to 1. Names stand above their rows where
/// there is no room beside them.
pub(super) fn intervals(title: &str, legend: &[String], rows: &[Row], width: f64) -> String {
    let beside = width > 400.0;
    let lane = 15.0;
    let name_height = if beside { 0.0 } else { 17.0 };
    let row_height = 16.0 + name_height + lane * legend.len() as f64;
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0) as f64;
    let left = if beside { 20.0 + 7.4 * longest.min(24.0) } else { 14.0 };
    let right = width - 52.0;
    let top = 34.0;
    let bottom = top + row_height * rows.len() as f64;
    let axis = Axis::linear("", Unit::Share, 0.0, 1.0);
    let px = |share: f64| left + axis.place(share) * (right - left);
    let mut svg = String::new();
    open(&mut svg, width, bottom + 30.0, title, "", "");
    let mut x = left;
    for (index, name) in legend.iter().enumerate() {
        let _ = write!(
            svg,
            r#"<circle class="dot c{}" cx="{:.1}" cy="14" r="4"/><text class="legend" x="{:.1}" y="18">{}</text>"#,
            index + 1,
            x + 4.0,
            x + 14.0,
            escape(name)
        );
        x += 34.0 + 7.0 * name.chars().count() as f64;
    }
    for (value, text) in &axis.ticks {
        let x = px(*value);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}"/><text class="tick" text-anchor="middle" x="{x:.1}" y="{:.1}">{text}</text>"#,
            bottom + 18.0
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let start = top + row_height * index as f64;
        if index > 0 {
            let _ =
                write!(svg, r#"<line class="rule" x1="0" x2="{width}" y1="{start:.1}" y2="{start:.1}"/>"#);
        }
        let name: String = row.name.chars().take(if beside { 24 } else { 40 }).collect();
        let name_at = if beside { start + row_height / 2.0 + 4.0 } else { start + 18.0 };
        let _ = write!(svg, r#"<text class="row" x="2" y="{name_at:.1}">{}</text>"#, escape(&name));
        for (index, value) in row.values.iter().enumerate() {
            let colour = index + 1;
            let y = start + 8.0 + name_height + lane * (index as f64 + 0.5);
            let (low, at, high) = (px(value.low), px(value.value), px(value.high));
            let _ = write!(
                svg,
                r#"<g><title>{}: {} ({} to {})</title><line class="interval c{colour}" x1="{low:.1}" x2="{high:.1}" y1="{y:.1}" y2="{y:.1}"/><circle class="dot c{colour}" cx="{at:.1}" cy="{y:.1}" r="4.5"/><text class="value" x="{:.1}" y="{:.1}">{}</text></g>"#,
                escape(legend.get(index).map_or("", String::as_str)),
                percent(value.value),
                percent(value.low),
                percent(value.high),
                high + 7.0,
                y + 4.0,
                percent(value.value)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// The colour of a part in the bar of [`shares`].
pub(super) fn share_colour(index: usize) -> usize {
    index % 6 + 1
}

/// One bar, cut into the shares of its parts.
pub(super) fn shares(title: &str, parts: &[(String, f64, String)], width: f64) -> String {
    let total: f64 = parts.iter().map(|(_, value, _)| value).sum();
    let mut svg = String::new();
    open(&mut svg, width, 46.0, title, "", "");
    let mut x = 0.0;
    for (index, (name, value, text)) in parts.iter().enumerate() {
        let wide = if total > 0.0 { value / total * width } else { 0.0 };
        let colour = share_colour(index);
        let _ = write!(
            svg,
            r#"<g><title>{}: {}</title><rect class="share c{colour}" x="{x:.1}" y="0" width="{:.1}" height="22" rx="2"/>"#,
            escape(name),
            escape(text),
            (wide - 1.5).max(0.5)
        );
        if wide > 7.0 * name.chars().count() as f64 + 4.0 {
            let _ = write!(svg, r#"<text class="legend" x="{x:.1}" y="40">{}</text>"#, escape(name));
        }
        svg.push_str("</g>");
        x += wide;
    }
    svg.push_str("</svg>");
    svg
}

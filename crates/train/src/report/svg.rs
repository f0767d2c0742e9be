//! Line charts as SVG, with bands, stage bounds and interval marks.
//!
//! A chart states classes, not colours, so that a page or a file can give it its own in light and in dark.

use std::fmt::Write;

use super::axis::{Axis, Unit, digits, percent};
use crate::stats::Estimate;

/// Text for HTML and SVG, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Characters that no version of XML allows, and those that turn the writing direction around.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// A line of a chart.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub name: String,
    /// Which of the colours 1 to 6.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    /// Half the height of the band around each point, if there is one.
    pub spread: Option<Vec<f64>>,
    /// Whether the points are many and noisy: drawn faintly under their moving mean.
    pub noisy: bool,
    /// Whether each point gets a dot.
    pub dots: bool,
}

/// A measured value at a place of a line chart, with its interval.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub x: f64,
    pub value: Estimate,
    pub label: String,
}

/// A line chart.
#[derive(Debug, Clone)]
pub(super) struct LineChart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Where parts begin, and what they are called.
    pub parts: Vec<(f64, String)>,
    pub marks: Vec<Mark>,
    pub width: f64,
    pub height: f64,
}

/// The points that a line is drawn through, at most.
const MOST_POINTS: usize = 400;

impl LineChart {
    /// The chart as an `<svg>` element; `style` goes into it, for a file that stands alone.
    pub fn render(&self, style: &str) -> String {
        // Where there is little room, names begin where the chart does.
        let aside = if self.width > 400.0 { None } else { Some(4.0) };
        let legend = legend_rows(&self.series, self.width - aside.unwrap_or(70.0));
        let top = 14.0 + 18.0 * legend.len() as f64 + if self.parts.is_empty() { 0.0 } else { 18.0 };
        let widest = self.y.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(1) as f64;
        let frame = Frame {
            // The axis's name stands left of its ticks.
            left: 34.0 + 7.0 * widest,
            right: self.width - 18.0,
            top,
            bottom: self.height - 42.0,
            x: &self.x,
            y: &self.y,
        };
        let mut svg = String::new();
        open(&mut svg, self.width, self.height, &self.title, style, &frame.hover(&self.series));
        frame.grid(&mut svg);
        let begin = aside.unwrap_or(frame.left);
        for (row, entries) in legend.iter().enumerate() {
            let y = 14.0 + 18.0 * row as f64;
            for (x, index) in entries {
                let Series { name, colour, .. } = &self.series[*index];
                let _ = write!(
                    svg,
                    r#"<line class="line c{colour}" x1="{:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="legend" x="{:.1}" y="{:.1}">{}</text>"#,
                    begin + x,
                    begin + x + 18.0,
                    begin + x + 24.0,
                    y + 4.0,
                    escape(name)
                );
            }
        }
        self.draw_parts(&frame, &mut svg);
        for series in &self.series {
            frame.series(series, &mut svg);
        }
        for mark in &self.marks {
            frame.mark(mark, &mut svg);
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_parts(&self, frame: &Frame<'_>, svg: &mut String) {
        for (index, (start, name)) in self.parts.iter().enumerate() {
            let end = self.parts.get(index + 1).map_or(self.x.max, |(next, _)| *next);
            let (from, to) = (frame.px(*start), frame.px(end));
            if index > 0 {
                let _ = write!(
                    svg,
                    r#"<line class="bound" x1="{from:.1}" x2="{from:.1}" y1="{:.1}" y2="{:.1}"/>"#,
                    frame.top - 16.0,
                    frame.bottom
                );
            }
            // A name that does not fit says nothing; the table of stages says it.
            let room = ((to - from - 8.0) / 6.6).max(0.0) as usize;
            let length = name.chars().count();
            let shown: String = match room {
                room if room >= length => name.clone(),
                room if room >= 5 => name.chars().take(room - 1).chain(['…']).collect(),
                _ => continue,
            };
            let _ = write!(
                svg,
                r#"<text class="part" x="{:.1}" y="{:.1}">{}</text>"#,
                from + 5.0,
                frame.top - 6.0,
                escape(&shown)
            );
        }
    }
}

/// The legend's entries, as rows of (x offset, series), if there is more than one series to tell apart.
fn legend_rows(series: &[Series], width: f64) -> Vec<Vec<(f64, usize)>> {
    let mut rows: Vec<Vec<(f64, usize)>> = Vec::new();
    if series.len() < 2 {
        return rows;
    }
    let mut x = f64::INFINITY;
    for (index, one) in series.iter().enumerate() {
        let needed = 44.0 + 6.8 * one.name.chars().count() as f64;
        if x + needed > width && rows.last().is_none_or(|row| !row.is_empty()) {
            rows.push(Vec::new());
            x = 0.0;
        }
        rows.last_mut().expect("a row was begun").push((x, index));
        x += needed;
    }
    rows
}

pub(super) fn open(svg: &mut String, width: f64, height: f64, title: &str, style: &str, data: &str) {
    let title = escape(title);
    let _ = write!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"{data}>{style}"#
    );
    if !style.is_empty() {
        // A picture in a page of unknown colour brings its own paper.
        let _ = write!(svg, r#"<rect class="paper" width="{width}" height="{height}" rx="8"/>"#);
    }
}

/// The area that a line chart draws into.
struct Frame<'a> {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: &'a Axis,
    y: &'a Axis,
}

impl Frame<'_> {
    fn px(&self, x: f64) -> f64 {
        self.left + self.x.place(x) * (self.right - self.left)
    }

    fn py(&self, y: f64) -> f64 {
        self.bottom - self.y.place(y) * (self.bottom - self.top)
    }

    fn grid(&self, svg: &mut String) {
        for (value, text) in &self.y.ticks {
            let y = self.py(*value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{text}</text>"#,
                self.left,
                self.right,
                self.left - 8.0,
                y + 4.0
            );
        }
        for (value, text) in &self.x.ticks {
            let x = self.px(*value);
            let _ = write!(
                svg,
                r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}"/><text class="tick" text-anchor="middle" x="{x:.1}" y="{:.1}">{text}</text>"#,
                self.bottom,
                self.bottom + 4.0,
                self.bottom + 18.0
            );
        }
        let _ = write!(
            svg,
            r#"<line class="axis" x1="{:.1}" x2="{:.1}" y1="{:.1}" y2="{:.1}"/><text class="name" text-anchor="end" x="{:.1}" y="{:.1}">{}</text><text class="name" text-anchor="middle" transform="translate(12 {:.1}) rotate(-90)">{}</text>"#,
            self.left,
            self.right,
            self.bottom,
            self.bottom,
            self.right,
            self.bottom + 35.0,
            escape(&self.x.label),
            (self.top + self.bottom) / 2.0,
            escape(&self.y.label)
        );
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let _ =
                write!(path, "{}{:.1} {:.1}", if index == 0 { "M" } else { "L" }, self.px(*x), self.py(*y));
        }
        path
    }

    fn series(&self, series: &Series, svg: &mut String) {
        let colour = series.colour;
        if let Some(spread) = &series.spread {
            let edge = |sign: f64| -> Vec<(f64, f64)> {
                let sides = series.points.iter().zip(spread);
                let edge: Vec<_> = sides.map(|((x, y), spread)| (*x, y + sign * spread)).collect();
                strokes(&edge).flat_map(smooth).collect()
            };
            let mut lower = edge(-1.0);
            lower.reverse();
            let outline = [edge(1.0), lower].concat();
            let _ = write!(svg, r#"<path class="band c{colour}" d="{}Z"/>"#, self.path(&outline));
        }
        for points in strokes(&series.points) {
            let noisy = series.noisy && points.len() > 8;
            if noisy {
                let _ = write!(svg, r#"<path class="raw c{colour}" d="{}"/>"#, self.path(&thin(points)));
            }
            let line = if noisy { smooth(points) } else { thin(points) };
            let _ = write!(svg, r#"<path class="line c{colour}" d="{}"/>"#, self.path(&line));
            if series.dots || points.len() == 1 {
                for (x, y) in thin(points) {
                    let (x, y) = (self.px(x), self.py(y));
                    let _ = write!(svg, r#"<circle class="dot c{colour}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
                }
            }
        }
    }

    fn mark(&self, mark: &Mark, svg: &mut String) {
        let x = self.px(mark.x);
        let (y, low, high) = (self.py(mark.value.value), self.py(mark.value.low), self.py(mark.value.high));
        // The label goes to the side where there is room.
        let (anchor, side) = if x > (self.left + self.right) / 2.0 { ("end", -9.0) } else { ("start", 9.0) };
        let _ = write!(
            svg,
            r#"<line class="whisker" x1="{x:.1}" x2="{x:.1}" y1="{low:.1}" y2="{high:.1}"/><circle class="mark" cx="{x:.1}" cy="{y:.1}" r="5"/><text class="note" text-anchor="{anchor}" x="{:.1}" y="{:.1}">{}</text>"#,
            x + side,
            // Curves that rise pass above; only a mark at the bottom has no room below.
            if self.y.place(mark.value.low) > 0.1 { low + 15.0 } else { high - 7.0 },
            escape(&mark.label)
        );
    }

    /// What the page's script needs to show values under the pointer.
    fn hover(&self, series: &[Series]) -> String {
        let one = |series: &Series| {
            let stroke = |points: &[(f64, f64)]| if series.noisy { smooth(points) } else { thin(points) };
            let points: Vec<(f64, f64)> = strokes(&series.points).flat_map(stroke).collect();
            let show = |value: f64| match self.y.unit {
                Unit::Share => percent(value),
                Unit::Plain => digits(value, 4),
            };
            let points: Vec<serde_json::Value> = points
                .iter()
                .map(|(x, y)| {
                    serde_json::json!([round(self.px(*x)), round(self.py(*y)), digits(*x, 4), show(*y)])
                })
                .collect();
            serde_json::json!({ "name": series.name, "colour": series.colour, "points": points })
        };
        let data = serde_json::json!({
            "top": self.top, "bottom": self.bottom, "label": self.x.label,
            "series": series.iter().map(one).collect::<Vec<_>>(),
        });
        format!(r#" data-plot="{}""#, escape(&data.to_string()))
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The lines that a series is drawn as: a value that is not finite lifts the pen.
fn strokes(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    points.split(|(x, y)| !x.is_finite() || !y.is_finite()).filter(|stroke| !stroke.is_empty())
}

/// At most [`MOST_POINTS`] points: means of neighbours.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MOST_POINTS).max(1);
    points.chunks(size).map(mean).collect()
}

/// A straight line fitted around each point, over a twentieth of the points at most; thinned. Unlike a moving
/// mean it neither flattens the ends nor follows their noise.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 40).clamp(1, 12);
    let fitted: Vec<(f64, f64)> = (0..points.len())
        .map(|at| {
            let near = &points[at.saturating_sub(reach)..(at + reach + 1).min(points.len())];
            let centre = mean(near);
            let (up, along) = near.iter().fold((0.0, 0.0), |(up, along), (x, y)| {
                (up + (x - centre.0) * (y - centre.1), along + (x - centre.0).powi(2))
            });
            let slope = if along > 0.0 { up / along } else { 0.0 };
            (points[at].0, centre.1 + slope * (points[at].0 - centre.0))
        })
        .collect();
    thin(&fitted)
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (sum.0 / count, sum.1 / count)
}

//! The page of a drawing: one file that needs no other. Time goes down, one row for each moment;
//! each client, member of PD and store has a lane. Requests are lines, answers dashed lines, in
//! the colour of their transaction; what never arrives ends in a cross. What a line stands for is
//! told where the pointer rests; a click on it leaves only its transaction in colour.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};

use super::{Drawing, Exchange};
use crate::node::Node;
use crate::sim::network::ClientId;

/// Sizes in units of the drawing, which are pixels until it is zoomed.
const ROW: usize = 16;
const LANE: usize = 170;
/// Where the first lane is; times stand left of it.
const FIRST: usize = 150;
const HEAD: usize = 26;
/// Longer texts are cut; the whole is told where the pointer rests.
const TEXT_MAX: usize = 46;

/// Who has a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Client(ClientId),
    Pd(usize),
    Store(u64),
}

impl From<Node> for Lane {
    fn from(node: Node) -> Self {
        match node {
            Node::Pd(member) => Lane::Pd(member),
            Node::Store(store) => Lane::Store(store),
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Client(client) => client.fmt(f),
            Lane::Pd(member) => Node::Pd(*member).fmt(f),
            Lane::Store(store) => Node::Store(*store).fmt(f),
        }
    }
}

/// Where everything stands.
struct Layout {
    lanes: BTreeMap<Lane, usize>,
    /// The colour of each transaction, by its number in the order of starts.
    transactions: BTreeMap<u64, usize>,
    width: usize,
    height: usize,
}

impl Layout {
    fn of(drawing: &Drawing) -> Self {
        let exchanges = &drawing.exchanges;
        let lanes: BTreeSet<Lane> = exchanges
            .iter()
            .flat_map(|it| [Lane::Client(it.client), it.node.into()])
            .collect();
        let starts: BTreeSet<u64> = exchanges.iter().filter_map(|it| it.txn).collect();
        let lanes: BTreeMap<Lane, usize> = lanes.into_iter().zip((FIRST..).step_by(LANE)).collect();
        Layout {
            width: FIRST + lanes.len().max(3) * LANE + LANE,
            height: (drawing.rows.len() + 2) * ROW,
            transactions: starts.into_iter().zip(1..).collect(),
            lanes,
        }
    }

    /// A text with short names in the place of transactions' starts, which take much room. The
    /// whole text stands in the title.
    fn with_names(&self, text: &str) -> String {
        let mut named = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.find(|letter: char| letter.is_ascii_digit()) {
            let (before, from) = rest.split_at(first);
            let end = from.find(|letter: char| !letter.is_ascii_digit());
            let (digits, after) = from.split_at(end.unwrap_or(from.len()));
            let start = digits.parse().ok();
            let number = start.and_then(|start: u64| self.transactions.get(&start));
            named.push_str(before);
            match number {
                Some(number) => named.push_str(&format!("T{number}")),
                None => named.push_str(digits),
            }
            rest = after;
        }
        named + rest
    }

    fn x(&self, lane: impl Into<Lane>) -> usize {
        self.lanes.get(&lane.into()).copied().unwrap_or(FIRST)
    }
}

fn y(row: usize) -> usize {
    (row + 1) * ROW
}

/// Text that means nothing else in a page.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= TEXT_MAX {
        return text.to_owned();
    }
    let start: String = text.chars().take(TEXT_MAX).collect();
    format!("{start}…")
}

pub(super) fn write(drawing: &Drawing, out: &mut dyn Write, title: &str) -> io::Result<()> {
    let layout = Layout::of(drawing);
    let Layout { width, height, .. } = layout;
    let name = title.lines().next().unwrap_or_default();
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>",
        Plain(name)
    )?;
    writeln!(out, "<style>{STYLE}</style></head><body>")?;
    writeln!(
        out,
        "<details open><summary>{}</summary><pre>{}</pre></details>",
        Plain(name),
        Plain(title)
    )?;
    writeln!(out, "{CONTROLS}<div id=\"head\">")?;
    writeln!(
        out,
        "<svg class=\"zoomed\" viewBox=\"0 0 {width} {HEAD}\" data-width=\"{width}\">"
    )?;
    for (lane, x) in &layout.lanes {
        writeln!(out, "<text class=\"lane\" x=\"{x}\" y=\"18\">{lane}</text>")?;
    }
    writeln!(out, "</svg></div>")?;
    writeln!(
        out,
        "<svg id=\"run\" class=\"zoomed\" viewBox=\"0 0 {width} {height}\" data-width=\"{width}\">"
    )?;
    for x in layout.lanes.values() {
        writeln!(out, "<path class=\"lane\" d=\"M{x} 0V{height}\"/>")?;
    }
    write_times(drawing, out)?;
    for note in &drawing.notes {
        let (row, text) = (y(note.row), Plain(&note.text));
        writeln!(
            out,
            "<g class=\"note\"><path d=\"M{FIRST} {row}H{width}\"/><text x=\"{}\" y=\"{}\">{text}</text></g>",
            FIRST + 4,
            row - 3
        )?;
    }
    for exchange in &drawing.exchanges {
        write_exchange(&layout, exchange, out)?;
    }
    writeln!(out, "</svg><script>{SCRIPT}</script></body></html>")
}

fn write_times(drawing: &Drawing, out: &mut dyn Write) -> io::Result<()> {
    let mut last = None;
    for (row, at) in drawing.rows.iter().enumerate() {
        if last != Some(at) {
            let (millis, micros) = (at.as_millis(), at.as_nanos() / 1_000 % 1_000);
            writeln!(
                out,
                "<text class=\"time\" x=\"{}\" y=\"{}\">{millis}.{micros:03} ms</text>",
                FIRST - 60,
                y(row) + 3
            )?;
        }
        last = Some(at);
    }
    Ok(())
}

fn write_exchange(layout: &Layout, exchange: &Exchange, out: &mut dyn Write) -> io::Result<()> {
    let (client, node) = (
        layout.x(Lane::Client(exchange.client)),
        layout.x(exchange.node),
    );
    let number = exchange.txn.and_then(|txn| layout.transactions.get(&txn));
    match number {
        // Neighbours differ most if their hues are a golden angle apart.
        Some(number) => write!(
            out,
            "<g class=\"x t{number}\" style=\"color:hsl({},75%,36%)\">",
            number * 137 % 360
        )?,
        None => write!(out, "<g class=\"x\">")?,
    }
    let Exchange {
        text,
        served,
        answered,
        ..
    } = exchange;
    let answer = served.as_ref().map_or("", |(_, answer)| answer);
    let failure = answered
        .as_ref()
        .and_then(|(_, failure)| failure.as_deref());
    let told = failure.map(|failure| format!("\n{} is told: {failure}", exchange.client));
    write!(
        out,
        "<title>{} → {}: {}\n{}{}</title>",
        exchange.client,
        exchange.node,
        Plain(text),
        Plain(answer),
        Plain(&told.unwrap_or_default())
    )?;
    let served = served.as_ref().map(|(row, answer)| (y(*row), answer));
    let label = |text: &str| short(&layout.with_names(text));
    if let Some(sent) = exchange.sent.map(y) {
        let label = label(text);
        write!(
            out,
            "<text x=\"{}\" y=\"{}\">{}</text>",
            client + 6,
            sent - 3,
            Plain(&label)
        )?;
        let end = served.map(|(row, _)| row);
        write_arrow(out, "ask", (client, sent), (node, end))?;
    }
    if let Some((row, answer)) = served {
        let again = if exchange.sent.is_none() {
            "again: "
        } else {
            ""
        };
        let label = label(&format!("{again}{answer}"));
        write!(
            out,
            "<text x=\"{}\" y=\"{}\">{}</text>",
            node + 9,
            row + 4,
            Plain(&label)
        )?;
        write!(out, "<circle cx=\"{node}\" cy=\"{row}\" r=\"3\"/>")?;
        if exchange.sent.is_some() {
            let back = answered.as_ref().filter(|(_, failure)| failure.is_none());
            let end = back.map(|(row, _)| y(*row));
            write_arrow(out, "answer", (node, row), (client, end))?;
        }
    }
    if let Some((row, Some(failure))) = answered {
        let (row, label) = (y(*row), short(failure));
        write!(
            out,
            "<path class=\"failed\" d=\"M{} {}h8v8h-8z\"/>",
            client - 4,
            row - 4
        )?;
        write!(
            out,
            "<text x=\"{}\" y=\"{}\">{}</text>",
            client + 8,
            row + 4,
            Plain(&label)
        )?;
    }
    writeln!(out, "</g>")
}

/// A line to where a message arrives, or to a cross half way if it does not.
fn write_arrow(
    out: &mut dyn Write,
    class: &str,
    (x, row): (usize, usize),
    (to, end): (usize, Option<usize>),
) -> io::Result<()> {
    let right = to > x;
    match end {
        Some(end) => {
            let head = if right { "l-8-4v8z" } else { "l8-4v8z" };
            write!(
                out,
                "<path class=\"{class}\" d=\"M{x} {row}L{to} {end}\"/><path class=\"head\" d=\"M{to} {end}{head}\"/>"
            )
        }
        None => {
            let middle = (x + to) / 2;
            write!(
                out,
                "<path class=\"{class} lost\" d=\"M{x} {row}L{middle} {row}\"/>\
                 <path class=\"lost\" d=\"M{} {}l10 10m0-10l-10 10\"/>",
                middle - 5,
                row - 5
            )
        }
    }
}

const CONTROLS: &str = "<p id=\"controls\"><button id=\"in\">+</button> \
<button id=\"out\">−</button> <button id=\"one\">1:1</button> <button id=\"fit\">fit</button> \
<span>ctrl and the wheel zoom; a click on a line picks its transaction, one on nothing all</span></p>";

const STYLE: &str = "
body{font:12px system-ui,sans-serif;margin:8px;color:#222;background:#fff}
pre{margin:4px 0;white-space:pre-wrap}
#controls{margin:4px 0}
#head{position:sticky;top:0;background:#fffd;border-bottom:1px solid #ccc}
svg{display:block;overflow:visible}
svg text{font:11px ui-monospace,monospace;fill:currentColor}
text.lane{font-weight:bold;text-anchor:middle;font-size:13px}
path.lane{stroke:#ccc;fill:none}
text.time{fill:#888;text-anchor:end}
g.x{color:#666;cursor:pointer}
g.x path{stroke:currentColor;fill:none}
g.x path.answer{stroke-dasharray:5 3}
g.x path.head,g.x circle{fill:currentColor;stroke:none}
g.x path.lost{stroke:#c00}
g.x path.failed{fill:#c00;stroke:none}
g.x:hover path.ask,g.x:hover path.answer{stroke-width:2.5}
g.note{color:#b50}
g.note path{stroke:#f4c9a0}
g.note text{font-style:italic}
svg.picked g.x:not(.pick){opacity:.12}
";

const SCRIPT: &str = "
const svgs=[...document.querySelectorAll('svg.zoomed')],run=document.getElementById('run');
let zoom=1;
function set(z,at){const old=zoom;zoom=Math.min(4,Math.max(.02,z));
for(const s of svgs)s.setAttribute('width',s.dataset.width*zoom);
const top=run.getBoundingClientRect().top+scrollY,y=at??innerHeight/2,x=innerWidth/2;
scrollTo((scrollX+x)*zoom/old-x,top+(scrollY+y-top)*zoom/old-y);}
const on=(id,f)=>document.getElementById(id).onclick=f;
on('in',()=>set(zoom*1.25));on('out',()=>set(zoom/1.25));on('one',()=>set(1));
on('fit',()=>set((innerWidth-16)/run.dataset.width));
addEventListener('wheel',e=>{if(e.ctrlKey){e.preventDefault();set(zoom*Math.exp(-e.deltaY/400),e.clientY)}},{passive:false});
run.onclick=e=>{const g=e.target.closest('g.x'),t=g&&[...g.classList].find(c=>/^t\\d/.test(c));
for(const p of run.querySelectorAll('.pick'))p.classList.remove('pick');
run.classList.toggle('picked',!!t);
if(t)for(const p of run.getElementsByClassName(t))p.classList.add('pick');};
set(1);
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_of_transactions_are_named_and_other_numbers_stay() {
        let layout = Layout {
            lanes: BTreeMap::new(),
            transactions: BTreeMap::from([(445_644_800, 1), (445_644_801, 2)]),
            width: 0,
            height: 0,
        };
        let text = "k/07 is locked by 445644801, ttl 3000, not by 445644800";
        let named = "k/07 is locked by T2, ttl 3000, not by T1";
        assert_eq!(layout.with_names(text), named);
        assert_eq!(layout.with_names(""), "");
    }
}

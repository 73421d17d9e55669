package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"
)

// printTables prints a table for each scenario.
func printTables(w io.Writer, results []result, clients, rate int, seed uint64) {
	fmt.Fprintf(w, "%d clients lose their server within %v. It does %d handshakes per second,\n", clients, within, rate)
	fmt.Fprintf(w, "so the ideal recovery takes %s s. Times count from when it is up. Seed %d.\n", secs(ideal(clients, rate), 1), seed)
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	var scene *scenario
	for _, r := range results {
		if r.scenario != scene {
			tab.Flush()
			scene = r.scenario
			fmt.Fprintf(w, "\n%s (%s). %s\n", scene.title, scene.name, scene.text)
			fmt.Fprintln(tab, "peak/s\tpeak/100ms\tp50 s\tp99 s\tattempts\tfailed\t  policy")
		}
		fmt.Fprintf(tab, "%d\t%d\t%s\t%s\t%d\t%d\t  %s%s\n", r.perSecond, r.per100ms,
			secs(r.p50, 1), secs(r.p99, 1), r.attempts, r.failed, r.policy.name, left(r, clients))
	}
	tab.Flush()
}

// left says how many clients are still not connected at the end.
func left(r result, clients int) string {
	if r.connected == clients {
		return ""
	}
	return fmt.Sprintf(" (%d clients still out after %v)", clients-r.connected, horizon)
}

// printMarkdown prints a summary of all scenarios as one table.
func printMarkdown(w io.Writer, results []result, clients, rate int, seed uint64) {
	fmt.Fprintf(w, "%d clients, %d handshakes/s (ideal recovery %s s), seed %d:\n\n", clients, rate, secs(ideal(clients, rate), 1), seed)
	fmt.Fprintln(w, "| | 60 s outage: peak/s | p99 | resync: peak/100 ms | p99 | back at once: peak/s | failed dials | collapse: p99 |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|--:|--:|")
	for i := range policies {
		cells := map[string]string{}
		for _, r := range results {
			if r.policy == &policies[i] {
				cells[r.scenario.name+" s"] = fmt.Sprint(r.perSecond)
				cells[r.scenario.name+" 100ms"] = fmt.Sprint(r.per100ms)
				cells[r.scenario.name+" failed"] = fmt.Sprint(r.failed)
				cells[r.scenario.name+" p99"] = secs(r.p99, 1) + " s"
				if r.p99 == never {
					cells[r.scenario.name+" p99"] = "never"
				}
			}
		}
		fmt.Fprintf(w, "| %s |", policies[i].name)
		for _, c := range []string{"outage s", "outage p99", "resync 100ms", "resync p99", "restart s", "restart failed", "collapse p99"} {
			fmt.Fprintf(w, " %s |", cells[c])
		}
		fmt.Fprintln(w)
	}
}

// secs prints a time in seconds.
func secs(d time.Duration, digits int) string {
	if d == never {
		return "never"
	}
	return fmt.Sprintf("%.*f", digits, d.Seconds())
}

// drawSVG draws, for each scenario but the collapse, which would fill half an
// hour, how many dials arrive per second after the server is up.
func drawSVG(results []result, clients, rate int) []byte {
	const (
		panelW, panelH     = 290, 220
		left, top, between = 64, 58, 22
		bin                = time.Second
		text               = `font-family="system-ui, sans-serif" fill="#1f2328"`
	)
	span := picture(clients, rate)
	bins := max(1, int(span/bin))
	rates := func(r result) []float64 {
		counts := make([]float64, bins)
		for _, t := range r.arrivals {
			if t < time.Duration(bins)*bin {
				counts[t/bin]++
			}
		}
		return counts
	}

	var panels []*scenario
	for i := range scenarios {
		if scenarios[i].name != "collapse" {
			panels = append(panels, &scenarios[i])
		}
	}
	highest := float64(rate)
	for _, r := range results {
		if r.policy.color != "" && r.scenario.name != "collapse" {
			for _, n := range rates(r) {
				highest = max(highest, n)
			}
		}
	}

	width := left + len(panels)*(panelW+between)
	height := top + panelH + 84
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>Dials per second at a server that %d clients have lost</title>\n", clients)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15" font-weight="600" %s>Dials per second at a server that %d clients have lost (it can take %d)</text>`+"\n", left, text, clients, rate)
	y := func(perSecond float64) float64 { return top + panelH - perSecond/highest*panelH }
	step := niceStep(highest)
	for n := 0.0; n <= highest; n += step {
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" font-size="11" text-anchor="end" %s>%.0f</text>`+"\n", left-8, y(n)+4, text, n)
	}
	for i, s := range panels {
		x0 := left + i*(panelW+between)
		x := func(t time.Duration) float64 { return float64(x0) + panelW*float64(t)/float64(span) }
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="13" %s>%s</text>`+"\n", x0, top-10, text, s.title)
		for n := 0.0; n <= highest; n += step {
			fmt.Fprintf(&b, `<path d="M%d %.1fh%d" stroke="#d8dee4" stroke-width="0.7"/>`+"\n", x0, y(n), panelW)
		}
		for k, anchor := range []string{"start", "middle", "middle", "end"} {
			t := time.Duration(k) * span / 3
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" font-size="11" text-anchor="%s" %s>%s s</text>`+"\n", x(t), top+panelH+16, anchor, text, secs(t, 0))
		}
		for _, r := range results {
			if r.scenario != s || r.policy.color == "" {
				continue
			}
			fmt.Fprintf(&b, `<path fill="none" stroke="%s" stroke-width="1.4" stroke-linejoin="round" d="`, r.policy.color)
			for k, n := range rates(r) {
				fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(k, 1)], x(time.Duration(k)*bin+bin/2), y(n))
			}
			fmt.Fprint(&b, `"/>`+"\n")
		}
		fmt.Fprintf(&b, `<path d="M%d %.1fh%d" stroke="#1f2328" stroke-width="1" stroke-dasharray="4 3"/>`+"\n", x0, y(float64(rate)), panelW)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="11" %s>Time since the server is up. Dashed: what it can take.</text>`+"\n", left, top+panelH+38, text)
	at := left
	for i := range policies {
		if p := &policies[i]; p.color != "" {
			fmt.Fprintf(&b, `<path d="M%d %dh22" stroke="%s" stroke-width="3"/>`, at, top+panelH+60, p.color)
			fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="12" %s>%s</text>`+"\n", at+28, top+panelH+64, text, p.name)
			at += 52 + 7*len([]rune(p.name))
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// niceStep returns 1, 2 or 5 times a power of ten, so that four to ten steps make
// up highest.
func niceStep(highest float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	for _, part := range []float64{1, 0.5, 0.2} {
		if highest/(step*part) >= 4 {
			return step * part
		}
	}
	return step * 0.1
}

// Renders a Helm chart with Go's own template engine, for machines without helm.
//
// Helm's templates are Go's text/template with more functions; those that this chart uses are here,
// after the documentation of Helm and Sprig. An unknown function or field stops the rendering.
// Reads {"Values":..., "Release":..., "Chart":...} from stdin; the chart's folder is the argument.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"
)

type files struct{ root string }

// Get is empty for a file that is not there, as Helm's is.
func (f files) Get(name string) string {
	content, _ := os.ReadFile(filepath.Join(f.root, name))
	return string(content)
}

func scalar(value any) string {
	text, err := json.Marshal(value)
	check(err)
	return string(text)
}

// block writes YAML in block style; scalars as JSON, which YAML includes.
func block(value any, indent string) string {
	var lines []string
	item := func(head string, child any) {
		switch node := child.(type) {
		case map[string]any:
			if len(node) > 0 {
				lines = append(lines, indent+head+"\n"+block(node, indent+"  "))
				return
			}
		case []any:
			if len(node) > 0 {
				lines = append(lines, indent+head+"\n"+block(node, indent+"  "))
				return
			}
		}
		lines = append(lines, indent+head+" "+scalar(child))
	}
	switch node := value.(type) {
	case map[string]any:
		keys := make([]string, 0, len(node))
		for key := range node {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			item(scalar(key)+":", node[key])
		}
	case []any:
		for _, child := range node {
			item("-", child)
		}
	default:
		return indent + scalar(value)
	}
	return strings.Join(lines, "\n")
}

func empty(value any) bool {
	truth, ok := template.IsTrue(value)
	return !ok || !truth
}

func integer(value any) int64 {
	switch number := value.(type) {
	case float64:
		return int64(number)
	case int64:
		return number
	case int:
		return int64(number)
	}
	panic(fmt.Sprintf("%v is no number", value))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	root := os.Args[1]
	var data map[string]any
	check(json.NewDecoder(os.Stdin).Decode(&data))
	data["Files"] = files{root}
	all := template.New("").Option("missingkey=error")
	indent := func(width int, text string) string {
		pad := strings.Repeat(" ", width)
		return pad + strings.ReplaceAll(text, "\n", "\n"+pad)
	}
	all.Funcs(template.FuncMap{
		"include": func(name string, context any) (string, error) {
			var out strings.Builder
			err := all.ExecuteTemplate(&out, name, context)
			return out.String(), err
		},
		"toYaml":  func(value any) string { return block(value, "") },
		"nindent": func(width int, text string) string { return "\n" + indent(width, text) },
		"quote":   func(value any) string { return fmt.Sprintf("%q", fmt.Sprint(value)) },
		"default": func(fallback, given any) any {
			if empty(given) {
				return fallback
			}
			return given
		},
		"required": func(message string, value any) (any, error) {
			if value == nil || value == "" {
				return nil, fmt.Errorf("%s", message)
			}
			return value, nil
		},
		"ternary": func(yes, no any, condition bool) any {
			if condition {
				return yes
			}
			return no
		},
		"trunc": func(length int, text string) string { return text[:min(length, len(text))] },
		"trimSuffix": func(suffix, text string) string { return strings.TrimSuffix(text, suffix) },
		"int64":      integer,
		"add":        func(a, b any) int64 { return integer(a) + integer(b) },
		"div":        func(a, b any) int64 { return integer(a) / integer(b) },
	})
	names, err := filepath.Glob(filepath.Join(root, "templates", "*"))
	check(err)
	for _, name := range names {
		content, err := os.ReadFile(name)
		check(err)
		_, err = all.New(filepath.Base(name)).Parse(string(content))
		check(err)
	}
	for _, name := range names {
		var out io.Writer = io.Discard // notes are executed, too, for their mistakes
		if strings.HasSuffix(name, ".yaml") {
			fmt.Println("---")
			out = os.Stdout
		}
		check(all.ExecuteTemplate(out, filepath.Base(name), data))
	}
}

// Package logs writes log lines for programs and people: one JSON object each, with `event`, `level` and `timestamp`.
package logs

import (
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"fedstream/client/internal/task"
)

// New makes a log whose lines all name the client.
func New(to io.Writer, client string) *slog.Logger {
	options := &slog.HandlerOptions{ReplaceAttr: renamed}
	return slog.New(slog.NewJSONHandler(to, options)).With("client", client)
}

var levels = map[slog.Level]string{slog.LevelInfo: "info", slog.LevelWarn: "warning", slog.LevelError: "error"}

// renamed gives slog's own fields the names that all clients of this project use.
func renamed(groups []string, field slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return field
	}
	switch field.Key {
	case slog.TimeKey:
		return slog.String("timestamp", field.Value.Time().UTC().Format(time.RFC3339Nano))
	case slog.LevelKey:
		return slog.String("level", levels[field.Value.Any().(slog.Level)])
	case slog.MessageKey:
		return slog.Attr{Key: "event", Value: field.Value}
	}
	return field
}

// Metrics are those that have a value, as fields of a line.
func Metrics(metrics task.Metrics) []any {
	var fields []any
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		if value := metrics[name]; value != nil {
			fields = append(fields, name, *value)
		}
	}
	return fields
}

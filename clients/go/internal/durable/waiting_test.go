package durable

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"syscall"
	"testing"
)

func refusing(number syscall.Errno) error {
	return &fs.PathError{Op: "write", Path: "file", Err: number}
}

func TestWhatIsWrittenWaitsForAFullDiskAndForNothingElse(t *testing.T) {
	quiet, tries := slog.New(slog.DiscardHandler), 0
	err := WhenTheDiskCan(t.Context(), quiet, "waiting", func() error {
		if tries++; tries < 2 {
			return refusing(syscall.ENOSPC)
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	err = WhenTheDiskCan(t.Context(), quiet, "waiting", func() error { return refusing(syscall.EACCES) })
	if !errors.Is(err, syscall.EACCES) {
		t.Errorf("waits for rights: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	err = WhenTheDiskCan(ended, quiet, "waiting", func() error { return refusing(syscall.ENOSPC) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("goes on when nobody wants it any more: %v", err)
	}
}

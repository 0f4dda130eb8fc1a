"""Geometry of charts as plain values; the templates write the markup, so that nothing foreign is ever markup.

Drawn by hand rather than by a chart grammar: a timeline with parts in lanes is no standard chart, colours follow the
reader's light or dark mode, text keeps its size on a phone, and the page needs no renderer to be made or read.

Horizontal places are percent of the chart's width, vertical ones are pixels: a chart is as wide as the screen, and its
text is as large as everywhere.
"""
